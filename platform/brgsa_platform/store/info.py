"""`brgsa store info` and `brgsa store show`: what a store holds, and what one of its volumes looks like."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brgsa.errors import UserError
from brgsa.volumes import decode
from brgsa_platform.layouts import SPLITS
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.store.doubts import Doubts, doubts
from brgsa_platform.store.store import GIVEN, HU_BIN, HU_BINS, HU_FIRST, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
BODY = -500  # HU from which a voxel counts as body: with the air, the percentiles would say little about the patient


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        settings: of the store; see `store.Meta`.
        bytes: of all shards.
        shards, batches: numbers of them.
        splits: split → number of patients, scans, volumes.
        prevalence: label → split → (volumes with it, volumes where it is known).
        spacing: axis → percentile → mm between the voxels of the scans as they came.
        size: axis → percentile → mm from the first to the last voxel of the scans as they came.
        hu: percentile → HU over the body's voxels.
        histogram: share of voxels in each of 32 bins of 64 HU from -1024 up.
        flags: flag, without its numbers → volumes that carry it.
        quarantine: stage → volumes refused there.
        styles: summary styles that have been computed, by the names of their columns.
        written_by: such a name → what wrote it: `style`, `hash`, `backend`, `model`.
        doubts: flags and refusals, with shares and examples.
        labels_from: where the labels come from, see `Store.label_source`.
        phantom: whether some volumes are synthetic.
    """

    path: str
    settings: dict[str, Any]
    fingerprint: str
    bytes: int
    shards: int
    batches: int
    splits: dict[str, dict[str, int]]
    prevalence: dict[str, dict[str, tuple[int, int]]]
    spacing: dict[str, dict[str, float]]
    size: dict[str, dict[str, float]]
    hu: dict[str, float]
    histogram: list[float]
    flags: dict[str, int]
    quarantine: dict[str, int]
    styles: list[str]
    written_by: dict[str, dict[str, str]]
    doubts: Doubts
    labels_from: str = GIVEN
    phantom: bool = False

    def print(self, as_json: bool = False) -> None:
        """Print tables, or one JSON object."""
        if as_json:
            print(json.dumps(asdict(self), indent=1))
            return
        geometry = self.settings["geometry"]
        grid = "×".join(map(str, geometry["shape"])) + " voxels of " + _times(geometry["spacing"])
        print_line(f"{self.path}: {grid} mm, {self.bytes / 2**30:.2f} GiB in {self.shards} shards")
        print_line(
            f"fingerprint {self.fingerprint}; summaries: {self._summaries() or 'none yet'}; strict: "
            f"{self.settings['strict']}" + ("; synthetic (brgsa phantom)" if self.phantom else "")
        )
        kinds = ("patients", "scans", "volumes")
        splits = [[split, *(f"{counts[kind]:,}" for kind in kinds)] for split, counts in self.splits.items()]
        print_table(table(("split", *kinds), splits))
        labels = [
            [name, *(_share(*by_split[split]) for split in self.splits)] for name, by_split in self.prevalence.items()
        ]
        print_table(table(("label: volumes with it", *self.splits), labels))
        if self.labels_from != GIVEN:
            print_line(f"labels from {self.labels_from}")
        scans = [
            [f"{quantity} {axis} (mm)", *(f"{v:.2f}" for v in values.values())]
            for quantity, by_axis in (("spacing", self.spacing), ("extent", self.size))
            for axis, values in by_axis.items()
        ]
        scans.append(["HU of the body", *(f"{v:.0f}" for v in self.hu.values())])
        print_table(table(("the scans as they came", *(f"{p:g} %" for p in PERCENTILES)), scans))
        if self.quarantine:
            print_line("quarantine: " + ", ".join(f"{stage} {n}" for stage, n in self.quarantine.items()))
        self.doubts.print()

    def _summaries(self) -> str:
        """Each style's column with the style's hash and, of a language model, its name: "positives (a1b2c3d4e5f6)"."""
        told = {}
        for key in self.styles:
            about = self.written_by[key]
            told[key] = " ".join(
                about[name] for name in ("hash", "backend", "model") if about.get(name) not in (None, "", "rules")
            )
        return ", ".join(f"{key} ({words})" if words else key for key, words in told.items())

    def draw(self, file: Path) -> None:
        """Write a PNG of spacings, extents and HU.

        Raises:
            UserError: it cannot be written ("picture-unwritable").
        """
        from brgsa_platform.runtime.plots import fingerprint_figure

        _save(fingerprint_figure(self.spacing, self.size, self.histogram, (HU_FIRST, HU_BIN)), file)


def info(path: str) -> StoreInfo:
    """Count what a store holds, from its index alone.

    Args:
        path: path or URL of the store.

    Raises:
        UserError: it is no store, or its index is damaged; see `Store.open` and `Store.index`.
    """
    store = Store.open(path)
    index = store.index()
    splits = [split for split in SPLITS if pc.any(pc.equal(index["split"], split)).as_py()]
    rows_by_split = {split: index.filter(pc.equal(index["split"], split)) for split in splits}
    spacing = np.array(index["source_spacing"].to_pylist(), dtype=np.float64)
    shape = np.array(index["source_shape"].to_pylist(), dtype=np.float64)
    found = doubts(store)
    counts = np.array(index["hu"].to_pylist(), dtype=np.float64).sum(axis=0)
    return StoreInfo(
        path=store.path,
        settings=store.meta.settings,
        fingerprint=store.fingerprint,
        bytes=sum(store.meta.sizes.values()),
        shards=len(store.meta.shards),
        batches=len(store.meta.batches),
        splits={
            split: {
                "patients": pc.count_distinct(rows["patient_id"]).as_py(),
                "scans": pc.count_distinct(rows["scan_id"]).as_py(),
                "volumes": len(rows),
            }
            for split, rows in rows_by_split.items()
        },
        prevalence={
            name: {split: _prevalence(rows, name) for split, rows in rows_by_split.items()} for name in store.labels
        },
        spacing=_percentiles(spacing),
        size=_percentiles(spacing * (shape - 1)),
        hu=_hu_percentiles(counts),
        histogram=[float(n) for n in counts / counts.sum()],
        flags=found.by_flag,
        quarantine=dict(Counter(store.quarantine()["stage"].to_pylist()).most_common()),
        styles=store.styles(),
        written_by={key: store.about_style(key) for key in store.styles()},
        labels_from=store.label_source,
        doubts=found,
        phantom=store.phantom,
    )


def show(path: str, volume_id: str, picture: Path, with_report: bool = False) -> str:
    """Write a volume's middle slices as a PNG; gives its row as lines of text.

    Args:
        path: path or URL of the store.
        picture: the PNG to write.
        with_report: include the report in the lines.

    Raises:
        UserError: the store has no such volume ("unknown-volume"), or the picture cannot be written
            ("picture-unwritable").
    """
    from brgsa_platform.runtime.plots import planes_figure

    store = Store.open(path)
    rows = store.index().filter(pc.equal(pc.field("volume_id"), volume_id)).to_pylist()
    if not rows:
        raise UserError(
            f"{store.path} has no volume {volume_id!r}: its index.parquet lists those that it has.",
            code="unknown-volume",
            field="volume_id",
            value=volume_id,
        )
    row = rows[0]
    volume = decode(store.encoded(row["shard"], row["row_group"]))
    _save(planes_figure([(volume_id, volume)], store.geometry.spacing), picture)
    present = [name for name, value in (row["labels"] or {}).items() if value == 1]
    lines = {
        "volume": f"{volume_id}, scan {row['scan_id']}, patient {row['patient_id']}, split {row['split']}",
        "came as": f"{_times(row['source_shape'])} voxels of {_times(row['source_spacing'])} mm from {row['source']}",
        "stored as": f"{_times(row['shape'])} voxels of {_times(row['spacing'])} mm, HU {volume.min()} to {volume.max()}",
        "where": f"{store.shards()[row['shard']]}, row group {row['row_group']}",
        "flags": ", ".join(row["flags"]) or "none",
        "labels": ", ".join(present) or "none present",
        "picture": str(picture),
    }
    if with_report:
        lines["report"] = row["report"]
    return "\n".join(f"{name:>9}  {text}" for name, text in lines.items())


def _save(figure: Figure, picture: Path) -> None:
    from brgsa_platform.runtime import plots

    try:
        plots.save(figure, picture)
    except OSError as error:
        raise UserError(
            f"The picture {picture} cannot be written ({error.strerror or error}): name a file in a folder that can be.",
            code="picture-unwritable",
            field="--picture",
            value=str(picture),
        ) from error


def _prevalence(rows: pa.Table, label: str) -> tuple[int, int]:
    """Volumes with a label, and volumes where it is known."""
    values = pc.struct_field(rows["labels"].combine_chunks(), label)
    return int(pc.sum(values).as_py() or 0), len(values) - values.null_count


def _share(present: int, known: int) -> str:
    return f"{present:,} ({present / known:.1%})" if known else "unknown"


def _percentiles(values: np.ndarray) -> dict[str, dict[str, float]]:
    """axis → percentile → value, of values (volumes, 3)."""
    by_axis = np.percentile(values, PERCENTILES, axis=0)
    return {
        axis: {f"{p:g}": float(v) for p, v in zip(PERCENTILES, by_axis[:, i], strict=True)}
        for i, axis in enumerate("xyz")
    }


def _hu_percentiles(counts: np.ndarray) -> dict[str, float]:
    """percentile → HU of the body, from a histogram's counts (32,); linear within a bin."""
    edges = HU_FIRST + HU_BIN * np.arange(HU_BINS + 1)
    body = np.where(edges[:-1] >= BODY, counts, 0)
    shares = np.concatenate([[0.0], np.cumsum(body) / max(body.sum(), 1)])
    return {f"{p:g}": float(np.interp(p / 100, shares, edges)) for p in PERCENTILES}


def _times(values: list[float]) -> str:
    return "×".join(f"{v:g}" for v in values)
