"""One shard of a store: its volumes from their files, written aside and renamed. What a Ray Data task does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.volumes import Geometry, VolumeError, encode, quality_warnings, read_volume, standardize
from brgsa_platform.layouts import Item
from brgsa_platform.runtime.storage import Folder, is_away, local_copy, short_error
from brgsa_platform.store.store import HU_BIN, HU_BINS, HU_FIRST, SCHEMA, checksum

_REFUSED = b"brgsa.quarantine"
DEATHS = (
    2  # of workers on one volume, after which it is refused: its reader crashes, or it needs more memory than there is
)
# Volumes are compressed already, and no two are alike.
_COMPRESSION = {name: "none" if name == "ct" else "zstd" for name in SCHEMA.names}
_OTHERS = [name for name in SCHEMA.names if name != "ct"]


class Refused(Exception):
    """A volume that goes to the quarantine table, and at which stage of the work."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason


class Journal(Protocol):
    """Who is told which volume a task takes up, so that one that kills its workers is known."""

    def take_up(self, volume_id: str) -> int:
        """How many tasks have taken this volume up before and never finished it."""

    def finished(self, volume_id: str) -> None:
        """The volume is done with, written or refused."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a store.

    The refused volumes stand in the shard's own footer, so that a shard that is there is whole.
    """

    store: Folder
    geometry: Geometry
    strict: bool = False

    def __call__(self, shard: str, items: Sequence[Item], journal: Journal | None = None) -> str:
        """Write the shard of these items.

        Returns:
            "" or why the store could not be written.
        """
        refused: list[dict[str, str]] = []
        try:
            with (
                self.store.written_aside(f"volumes/{shard}") as aside,
                pq.ParquetWriter(
                    aside, SCHEMA, compression=_COMPRESSION, use_dictionary=_OTHERS, write_statistics=_OTHERS
                ) as writer,
            ):
                for row in self._rows(items, refused, journal):
                    writer.write_table(row, row_group_size=1)
                writer.add_key_value_metadata({_REFUSED: json.dumps(refused)})
        except OSError as error:
            return short_error(error) or type(error).__name__
        return ""

    def _rows(
        self, items: Sequence[Item], refused: list[dict[str, str]], journal: Journal | None
    ) -> Iterator[pa.Table]:
        for item in items:
            deaths = journal.take_up(item.volume_id) if journal else 0
            try:
                if deaths >= DEATHS:
                    raise Refused(
                        "crash",
                        f"{item.source}: {deaths} workers died while reading it (out of memory, or a fault of its reader).",
                    )
                row = self._row(item)
            except Refused as error:
                about = {"volume_id": item.volume_id, "source": item.source}
                refused.append({**about, "stage": error.stage, "reason": error.reason})
            else:
                yield row
            if journal:
                journal.finished(item.volume_id)

    def _row(self, item: Item) -> pa.Table:
        if item.refused:
            raise Refused("list", f"{item.source}: {item.refused}")
        if not item.report and not item.unreported:
            raise Refused("report", f"{item.source}: it has no report; add one to the table, or leave the volume out.")
        try:
            with local_copy(item.path) as path:
                volume = read_volume(path, item.metadata, item.series)
            array = standardize(volume, self.geometry)
        except VolumeError as error:
            raise Refused("read", f"{item.source}: {error.reason}") from error
        except Exception as error:  # one strange file among thousands must not end the run
            if isinstance(error, OSError) and is_away(error):
                raise  # of an archive's object store; the rest of its scans would all be refused
            # Of a DICOM series, what a library says may name a file, and a file the patient.
            told = "" if item.series else f", {short_error(error)}"
            raise Refused("read", f"{item.source}: {type(error).__name__}{told}") from error
        doubtful = quality_warnings(volume.flags) if self.strict else []
        if doubtful:
            raise Refused("strict", f"{item.source}: {' '.join(doubtful)}")
        row = {
            "volume_id": item.volume_id,
            "scan_id": item.scan_id,
            "patient_id": item.patient_id,
            "split": item.split,
            "ct": encode(array),
            "shape": list(array.shape),
            "spacing": list(self.geometry.spacing),
            "source_shape": list(volume.array.shape),
            "source_spacing": list(volume.spacing),
            "hu": hu_histogram(array).tolist(),
            "report": item.report,
            "labels": item.labels,
            "source": item.source,
            "flags": list(volume.flags),
            "checksum": "",
        }
        table = pa.Table.from_pylist([row], schema=SCHEMA)
        # Over the values as Parquet gives them back: its float32 are not Python's numbers.
        number = SCHEMA.get_field_index("checksum")
        return table.set_column(number, SCHEMA.field(number), pa.array([checksum(table.to_pylist()[0])]))


def hu_histogram(array: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Counts (32,) of every second voxel along each axis, in bins of 64 HU from -1024 up."""
    every_second = array[::2, ::2, ::2]
    bins = np.clip((every_second.astype(np.int32) - HU_FIRST) // HU_BIN, 0, HU_BINS - 1)
    return np.bincount(bins.ravel(), minlength=HU_BINS)


def read_refused(shard: pq.ParquetFile) -> list[dict[str, str]]:
    """The rows of the quarantine table that came up while a shard was written."""
    refused: list[dict[str, str]] = json.loads((shard.metadata.metadata or {}).get(_REFUSED, b"[]"))
    return refused


def read_rows(shard: pq.ParquetFile) -> pa.Table:
    """A shard's rows without the volumes."""
    return shard.read(columns=[name for name in SCHEMA.names if name != "ct"])


def is_whole(store: Folder, shard: str, volumes: int, size: int | None) -> bool:
    """Whether a shard is there, can be opened, and accounts for as many volumes as were planned.

    Args:
        size: bytes that it had when it was counted; None: it has not been.
    """
    name = f"volumes/{shard}"
    there = store.size(name)
    if not there or (size is not None and there != size):
        return False
    try:
        with store.open(name) as file:
            opened = pq.ParquetFile(file)
            return int(opened.metadata.num_row_groups) + len(read_refused(opened)) == volumes
    except (OSError, ValueError, pa.ArrowInvalid):  # cut short: a Parquet's footer stands at its end
        return False
