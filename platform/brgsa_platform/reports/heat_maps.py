"""Where a model looked in a few of the volumes that it got right, and in a few that it missed.

It needs the checkpoint, the store and its shards. A report is made without them too, and says what it lacks.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brgsa import zeroshot
from brgsa.checkpoint import weights_digest
from brgsa.errors import UserError
from brgsa.volumes import Volume
from brgsa_platform.evaluation.scored import Scored
from brgsa_platform.reports.runs import Evaluated
from brgsa_platform.runtime.progress import progress

DPI = 90


@dataclass(frozen=True)
class Case:
    """A volume with an abnormality.

    Attributes:
        row: of the volume among those that are scored.
        above: share of the volumes without the abnormality that score lower; a hit's is high, a miss's below a half.
    """

    row: int
    name: str
    above: float

    @property
    def is_hit(self) -> bool:
        """Whether the volume outscores most volumes without the abnormality."""
        return self.above >= 0.5


@dataclass(frozen=True)
class Picture:
    """A heat map over its volume, as a PNG in base64."""

    caption: str
    png: str = field(repr=False)


def choose(scored: Scored, count: int) -> list[Case]:
    """Hits and misses, half of each where there are as many: no volume twice, an abnormality at most once among either."""
    hits, misses = [], []
    for i, name in enumerate(scored.names):
        labels, scores = np.asarray(scored.labels)[:, i], scored.scores[:, i]
        with_it, without = np.flatnonzero(labels == 1), np.sort(scores[labels == 0])
        if not len(with_it) or not len(without):
            continue
        above = np.searchsorted(without, scores[with_it], "left") + np.searchsorted(without, scores[with_it], "right")
        shares = above / (2 * len(without))
        best, worst = int(np.argmax(shares)), int(np.argmin(shares))
        hits.append(Case(int(with_it[best]), name, float(shares[best])))
        misses.append(Case(int(with_it[worst]), name, float(shares[worst])))
    hits = _once([case for case in sorted(hits, key=lambda case: -case.above) if case.is_hit])
    misses = _once([case for case in sorted(misses, key=lambda case: case.above) if not case.is_hit])
    half = max(-(-count // 2), count - len(misses))
    chosen = hits[:half]
    taken = {case.row for case in chosen}
    return [*chosen, *[case for case in misses if case.row not in taken][: count - len(chosen)]]


def _once(cases: list[Case]) -> list[Case]:
    """The first case of each volume."""
    by_row: dict[int, Case] = {}
    for case in cases:
        by_row.setdefault(case.row, case)
    return list(by_row.values())


def heat_maps(run: Evaluated, count: int) -> tuple[list[Picture], str]:
    """The pictures, and why there are none."""
    if run.scored is None:
        return [], "scores and labels by volume are not beside the table"
    checkpoint, store = run.origin.get("checkpoint"), run.origin.get("store")
    if not checkpoint or not store:
        return [], "the scores came from a file, without a checkpoint and a store"
    beside = run.file.parent / "model.safetensors"
    try:
        return _drawn(run, run.scored, beside.parent if beside.is_file() else Path(checkpoint), store, count), ""
    except UserError as error:
        return [], f"checkpoint or store are not at hand ({error.code})"


def _drawn(run: Evaluated, scored: Scored, checkpoint: Path, store_path: str, count: int) -> list[Picture]:
    """Raises UserError: the checkpoint, the store or a shard cannot be read, or is not what was evaluated."""
    from brgsa_platform.loading.batches import BatchSource, split_index
    from brgsa_platform.serving.scorer import Scorer, Seen
    from brgsa_platform.store.store import Store

    if not (checkpoint / "model.safetensors").is_file():
        raise UserError(f"There is no checkpoint at {checkpoint}.", code="not-a-checkpoint", field=str(checkpoint))
    if weights_digest(checkpoint) != run.origin.get("weights"):
        raise UserError(f"{checkpoint} has other weights.", code="other-weights", field=str(checkpoint))
    store = Store.open(store_path)
    if store.fingerprint != run.told["data"]:
        raise UserError(f"{store_path} holds other data.", code="other-data", field=store_path)
    cases = choose(scored, count)
    if not cases:
        return []
    index = split_index(store, run.told["split"])
    place = {volume: row for row, volume in enumerate(index.volume_ids)}
    scorer = Scorer(checkpoint, zeroshot.prompts([case.name for case in cases]), pairing=run.told["pairing"])
    reader = BatchSource(index, scorer.model.config.vision.evaluated(store.geometry.shape)).reader()
    pictures = []
    with progress(len(cases), "heat maps") as advance:
        for number, case in enumerate(cases):
            (hu,) = reader.read(np.array([place[scored.volume_ids[case.row]]]), 0)
            seen = Seen(Path(), Volume(hu, store.geometry.spacing), hu, [], [])
            ranked, drawn = scorer.map(seen, number)
            pictures.append(Picture(_caption(case, ranked.opinion), _png(hu, drawn, store.geometry.spacing)))
            advance()
    return pictures


def _caption(case: Case, opinion: float | None) -> str:
    said = (
        "The checkpoint keeps no validation scores to compare with: how strongly it is drawn says nothing."
        if opinion is None
        else "The model has no opinion on it: not drawn."
        if opinion == 0
        else f"Drawn as strongly as the model's opinion, {opinion:.0%}."
    )
    what = "Hit" if case.is_hit else "Miss"
    return f"{what}: {case.name}. It scores higher than {case.above:.0%} of the volumes without it. {said}"


def _png(hu: NDArray[np.int16], drawn: NDArray[np.float32], spacing: tuple[float, float, float]) -> str:
    from brgsa_platform.runtime.plots import heat_figure

    picture = io.BytesIO()
    heat_figure(hu, [("", drawn)], spacing).savefig(picture, format="png", dpi=DPI)
    return base64.b64encode(picture.getvalue()).decode("ascii")
