"""An evaluation's files with a row a volume, and the way back from them: scores, labels, and where texts and volumes lie.

They name volumes, so that they stay on the disk. With them a report is made, and another protocol measured, without the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa.metrics.gap import Clouds
from brgsa_platform.evaluation.result import Alignment, Ranks
from brgsa_platform.evaluation.score_files import SPACING
from brgsa_platform.evaluation.scored import Scored

METADATA = b"brgsa"
OWNERS = ("scan_id", "patient_id")
PHASES = ("before", "after")  # of CMKI


@dataclass(frozen=True)
class SavedAlignment:
    """What of an `Alignment` is not in the table, of the M volumes that have a text.

    Attributes:
        volume_ids: of all volumes under test; rows of `ranks` count in them.
        clouds: "before" and, for a model with a bank, "after".
    """

    volume_ids: list[str]
    clouds: dict[str, Clouds]
    ranks: Ranks


def write_scores(path: Path, scored: Scored, about: dict[str, Any]) -> None:
    """`volume_id` and a column of scores an abnormality: a file that `brgsa evaluate --scores` takes."""
    columns = {name: scored.scores[:, i] for i, name in enumerate(scored.names)}
    _write(path, {"volume_id": scored.volume_ids, **columns}, about)


def write_labels(path: Path, scored: Scored) -> None:
    """`volume_id`, scan and patient as numbers, voxels where they are known, and a column an abnormality: 1, 0 or null.

    A file that `brgsa evaluate --labels` takes.
    """
    columns: dict[str, Any] = {"volume_id": scored.volume_ids}
    for name, codes in zip(OWNERS, (scored.scans, scored.patients), strict=True):
        # Of one width, so that they sort as numbers do, and the bootstrap draws the same scans.
        columns[name] = [f"{code:08d}" for code in codes.tolist()]
    if scored.voxels is not None:
        sides = np.sqrt(scored.voxels[:, 0]).tolist()
        columns |= {SPACING[0]: [json.dumps([side, side]) for side in sides], SPACING[1]: scored.voxels[:, 1]}
    labels = np.asarray(scored.labels, dtype=np.float64)
    for i, name in enumerate(scored.names):
        columns[name] = pa.array(labels[:, i], pa.int8(), from_pandas=True)
    _write(path, columns, {})


def read_saved(scores: Path, labels: Path) -> Scored:
    """What `write_scores` and `write_labels` wrote.

    Raises:
        UserError: see `_read`; scores-differ where the two are not of the same volumes.
    """
    table, known = _read(scores), _read(labels)
    ids = table["volume_id"].to_pylist()
    names = table.column_names[1:]
    if known["volume_id"].to_pylist() != ids or not {*names, *OWNERS} <= set(known.column_names):
        raise UserError(
            f"{labels} and {scores} are of different evaluations: evaluate again.",
            code="scores-differ",
            field=str(labels),
        )
    voxels = None
    if SPACING[0] in known.column_names:
        sides = [json.loads(cell)[0] for cell in known[SPACING[0]].to_pylist()]
        voxels = np.stack([np.square(sides), known[SPACING[1]].to_numpy()], axis=1)
    scans, patients = (np.array(known[name].to_pylist(), dtype=np.int64) for name in OWNERS)
    return Scored(names, ids, _floats(known, names), _floats(table, names), scans, patients, voxels)


def write_alignment(path: Path, found: Alignment, volume_ids: Sequence[str]) -> None:
    """A row a volume: where its embedding and its text's lie in the plane, and how well retrieval finds them."""
    ranks, gap = found.ranks, found.gap
    assert ranks is not None
    assert gap is not None
    columns: dict[str, Any] = {"volume_id": list(volume_ids)}
    explained = {}
    for phase, clouds in zip(PHASES, (gap.clouds_before, gap.clouds_after), strict=True):
        if clouds is not None:
            explained[phase] = clouds.explained
            for of, points in (("volume", clouds.volumes), ("text", clouds.texts)):
                columns |= {
                    f"{of}_{axis}_{phase}": _spread(points[:, i], ranks.rows, len(volume_ids))
                    for i, axis in enumerate("xy")
                }
    columns["text_rank"] = _spread(ranks.of_text, ranks.rows, len(volume_ids))
    columns["volume_rank"] = _spread(ranks.of_volume, ranks.rows, len(volume_ids))
    first = [ranks.first.get(row) for row in range(len(volume_ids))]
    columns["first_texts_of"] = pa.array(first, pa.list_(pa.int64()))
    _write(path, columns, explained)


def read_alignment(path: Path) -> SavedAlignment:
    """What `write_alignment` wrote.

    Raises:
        UserError: see `_read`.
    """
    table = _read(path)
    explained = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
    of_text = table["text_rank"].to_numpy()
    rows = np.flatnonzero(~np.isnan(of_text))

    def points(of: str, phase: str) -> NDArray[np.float64]:
        return np.stack([table[f"{of}_{axis}_{phase}"].to_numpy()[rows] for axis in "xy"], axis=1)

    clouds = {
        phase: Clouds(points("volume", phase), points("text", phase), share) for phase, share in explained.items()
    }
    first = {row: list(found) for row, found in enumerate(table["first_texts_of"].to_pylist()) if found is not None}
    of_volume = table["volume_rank"].to_numpy()[rows].astype(np.int64)
    ranks = Ranks(rows, of_text[rows].astype(np.int64), of_volume, first)
    return SavedAlignment(table["volume_id"].to_pylist(), clouds, ranks)


def _spread(values: NDArray[Any], rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Values of some rows among all, NaN for the others."""
    filled = np.full(count, np.nan)
    filled[rows] = values
    return filled


def _floats(table: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    columns = [table[name].to_numpy().astype(np.float64) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0))


def _write(path: Path, columns: dict[str, Any], about: dict[str, Any]) -> None:
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(about)})
    with written_aside(path) as aside:
        pq.write_table(table, aside)


def _read(path: Path) -> pa.Table:
    """Raises UserError: unreadable-evaluation."""
    try:
        return pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): evaluate again.",
            code="unreadable-evaluation",
            field=str(path),
        ) from error
