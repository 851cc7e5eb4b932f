"""`brgsa ablate`: which half of BrgSA earns what, summaries or bank, on several seeds and beyond chance or not.

Five arms are trained: CLIP on the reports' sentences, with summaries, with the bank, with both; and a control without the bank
that has the bank's share of the loss given to plain InfoNCE, for a bank's gain must not be that of a larger step. They are
measured on the test split, from which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brgsa.errors import UserError, nearest
from brgsa.files import read_json, write_json
from brgsa.protocols import Protocol
from brgsa_platform.config import RunConfig
from brgsa_platform.evaluation.options import with_resamples
from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.unseen import training_view
from brgsa_platform.runtime import console
from brgsa_platform.runtime.locks import held
from brgsa_platform.runtime.session import quiet_environment, ray_session
from brgsa_platform.search.repeats.arms import Arm, arm_settings, measure_arms, train_arms, trainings_of
from brgsa_platform.search.repeats.gains import LEVEL, ArmGain, Results, arm_gains, group_columns, seed_means
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.spec import SearchOptions
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import query
from brgsa_platform.training.driver import check_fit

ABLATION_FILE = "ablation.json"  # what the folder's ablation is; its results lie in RESULT_FILE
RESULT_FILE = "result.json"
SPLIT = "test"
GROUPS = ("common", "rare", "unseen")
SENTENCES = 5  # of a report, drawn for a text: whole reports are longer than what a text tower reads
CLIP, SUMMARIES, BANK, BOTH, CONTROL = "clip", "+ summaries", "+ bank", "both", "summaries, plain=2"
PAIRS = ((SUMMARIES, CLIP), (BANK, CLIP), (BOTH, SUMMARIES), (BOTH, CONTROL), (BOTH, CLIP))

_REPORTS = {"data.style": "report", "data.sentences": SENTENCES}
_NO_BANK = {"model.bank.enabled": False}
ARMS = (
    Arm(CLIP, {**_REPORTS, **_NO_BANK}),
    Arm(SUMMARIES, _NO_BANK),
    Arm(BANK, _REPORTS),
    Arm(BOTH),
    Arm(CONTROL, {**_NO_BANK, "loss.plain": 2.0}),
)


@dataclass(frozen=True)
class AblateOptions:
    """How an ablation is run.

    Attributes:
        seeds: trainings of each arm.
        unseen: abnormalities that no training text speaks of.
        protocol: of the evaluation, by name or path; resamples: in place of its own.
        concurrent, gpu_share: see `SearchOptions`.
    """

    seeds: int = 3
    unseen: Sequence[str] = ()
    protocol: str = "honest"
    resamples: int | None = None
    concurrent: int | None = None
    gpu_share: float | None = None

    @property
    def chosen(self) -> Protocol:
        """The protocol; UserError as in `with_resamples`."""
        return with_resamples(self.protocol, self.resamples)


@dataclass(frozen=True)
class Ablation:
    """What was measured.

    Attributes:
        folder: with trainings, tables and pictures.
        run_id: the parent run in MLflow.
        about: base, data, seeds and protocol, as plain JSON values.
        means: arm → group → mean AUROC, a seed each; a group without a measured abnormality is missing.
        gains: of the pairs that tell what each half earns.
    """

    folder: Path
    run_id: str
    about: dict[str, Any]
    means: dict[str, dict[str, list[float]]]
    gains: list[ArmGain]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        gains = [
            {
                "arm": one.arm, "over": one.over, "group": one.group, **one.gain._asdict(), "p": one.p, "p_holm": one.p_holm,
                "beyond_chance": one.beyond_chance,
            }
            for one in self.gains
        ]  # fmt: skip
        return {**self.about, "means": self.means, "gains": gains, "mlflow_run_id": self.run_id}

    def print(self) -> None:
        """Both tables on standard output."""
        groups = [group for group in GROUPS if any(group in of for of in self.means.values())]
        rows = [[arm, *(_spread(of[group]) for group in groups)] for arm, of in self.means.items()]
        title = (
            f"AUROC on the {SPLIT} split, mean ± sd of {self.about['seeds']} seeds, protocol {self.about['protocol']}"
        )
        heads = ["arm", *groups]
        console.print_table(console.table(heads, rows, title=title, right=range(1, len(heads)), unbroken=(0,)))
        rows = [
            [f"{one.arm} over {one.over}", one.group, f"{one.gain.value:+.3f}", f"{one.gain.low:+.3f} to {one.gain.high:+.3f}",
             console.p_value(one.p), console.p_value(one.p_holm), "yes" if one.p_holm < LEVEL else "no"]
            for one in self.gains
        ]  # fmt: skip
        heads = ["what", "of the", "gain", "95 % over volumes and seeds", "p", "p, Holm", "beyond chance"]
        console.print_table(console.table(heads, rows, title="Paired gains", right=range(2, 6), unbroken=(0,)))
        console.print_line(f"Written: {self.folder / RESULT_FILE}. Curves and pictures: brgsa ui")


def ablate(
    store_path: Path | str,
    base: RunConfig,
    folder: Path,
    options: AblateOptions = AblateOptions(),
    *,
    preset: str | None = None,
) -> Ablation:
    """Train all arms on all seeds, measure them on the test split, and compare them. Interrupted, the same call goes on.

    Args:
        base: the configuration with both halves; its summary style must have been computed.
        folder: of the ablation.
        preset: name of the base's preset, for MLflow's tag.

    Raises:
        UserError: the base has no bank, or texts of no summary style ("no-ablation"); other-ablation where the folder holds
            one that began in another way; unknown-label among `unseen`; empty-split where there is no test split; what
            `training_view` and `check_fit` refuse; cluster-too-small; arm-failed.
    """
    store, protocol = Store.open(store_path), options.chosen
    base = _checked(store, base, options)
    about = {
        "base": base.to_dict(), "data": store.fingerprint, "store": store.path, "seeds": options.seeds,
        "unseen": list(options.unseen), "arms": {arm.name: dict(arm.values) for arm in ARMS},
    }  # fmt: skip
    folder = folder.absolute()
    begun = _begun(folder, about)
    trainings = trainings_of(ARMS, [base.train.seed + i for i in range(options.seeds)])
    quiet_environment()
    tags = {"brgsa.preset": preset or "", "brgsa.data": store.fingerprint, "brgsa.protocol": protocol.name}
    with (
        held(folder, "ablate"),
        ray_session(),
        tracking.run(
            "ablate",
            name=folder.name,
            params={"base": base.to_dict(), "seeds": options.seeds, "unseen": ", ".join(options.unseen)},
            tags=tags,
            run_id=begun if begun and query.exists(begun) else None,
        ) as run,
    ):
        write_json(folder / ABLATION_FILE, {**about, "mlflow_run_id": run.run_id})
        searched = SearchOptions(concurrent=options.concurrent, gpu_share=options.gpu_share)
        settings = arm_settings(store, base, folder, run.run_id, searched, preset=preset)
        train_arms(settings, trainings)
        results = measure_arms(settings, trainings, SPLIT, protocol)
        found = _compared(folder, run.run_id, {**about, "protocol": protocol.name}, results, options.unseen)
        write_json(folder / RESULT_FILE, found.to_json())
        _log(run, found, results)
    return found


def _checked(store: Store, base: RunConfig, options: AblateOptions) -> RunConfig:
    """The base with what is kept out of its texts, refused where there is nothing to take away from it."""
    if options.seeds < 1:
        raise UserError(
            f"--seeds must be at least 1, not {options.seeds}.",
            code="option-value",
            field="--seeds",
            value=options.seeds,
        )
    for field, lacking in (
        ("model.bank.enabled", not base.model.bank.enabled),
        ("data.style", base.data.style == "report"),
    ):
        if lacking:
            raise UserError(
                f"An ablation takes bank and summaries away from a base that has both, and {field} says otherwise: give a "
                "--preset such as demo or paper.",
                code="no-ablation",
                field=field,
            )
    for name in options.unseen:
        if name not in store.labels:
            raise UserError(
                f"{store.path} has no label {name!r}{nearest(name, store.labels)}; it has: {', '.join(store.labels)}.",
                code="unknown-label",
                field="--unseen",
                value=name,
            )
    split_index(store, SPLIT)  # refuses a store without one, before hours of training
    base = drawn_config(base, {"data.unseen": list(options.unseen)})
    view = training_view(store, base.data)
    for arm in ARMS:
        check_fit(view, drawn_config(base, arm.values))
    return base


def _begun(folder: Path, about: dict[str, Any]) -> str:
    """The MLflow run of the ablation that a folder holds; empty where it holds none."""
    file = folder / ABLATION_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        return ""
    known = read_json(file, "choose another --name")
    differing = next((key for key, value in about.items() if known.get(key) != value), None)
    if differing is not None:
        raise UserError(
            f"{folder} holds an ablation that began with another {differing}: choose another --name, or give what it began "
            "with.",
            code="other-ablation",
            field=differing,
            value=str(folder),
        )
    return str(known["mlflow_run_id"])


def _compared(folder: Path, run_id: str, about: dict[str, Any], results: Results, unseen: Sequence[str]) -> Ablation:
    means: dict[str, dict[str, list[float]]] = {}
    for arm, of in results.items():
        columns = {group: group_columns(of[0], group, unseen) for group in GROUPS}
        means[arm] = {group: seed_means(of, chosen) for group, chosen in columns.items() if chosen}
    gains = [gain for group in GROUPS for gain in arm_gains(results, PAIRS, group, unseen)]
    return Ablation(folder, run_id, about, means, gains)


def _log(run: tracking.Run, found: Ablation, results: Results) -> None:
    """Means, gains and both clouds of each arm's first seed to MLflow and into the folder."""
    from brgsa_platform.runtime import plots

    for arm, of in found.means.items():
        key = "".join(letter if letter.isalnum() else "_" for letter in arm).strip("_")
        run.log_metrics({f"{group}/{key}": float(np.mean(values)) for group, values in of.items()})
        gap = results[arm][0].gap
        if gap is not None:
            picture = plots.clouds_figure(gap.clouds_before, gap.before, gap.clouds_after, gap.after)
            run.log_figure(picture, f"clouds/{key}.png")
            plots.save(picture, found.folder / f"clouds-{key}.png")
    columns = {
        name: [getattr(one, name) for one in found.gains]
        for name in ("arm", "over", "group", "p", "p_holm", "beyond_chance")
    }
    columns |= {part: [getattr(one.gain, part) for one in found.gains] for part in ("value", "low", "high")}
    run.log_table("gains.json", columns)
    run.log_artifact(found.folder / RESULT_FILE)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
