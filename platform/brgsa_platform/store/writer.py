"""Write one shard of a store from its volumes' files. This is the work of one Ray Data task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.summaries import understood
from brgsa.volumes import Geometry, Volume, VolumeError, encode, quality_warnings, read_volume, standardize
from brgsa.volumes.formats.detached import data_files
from brgsa_platform.layouts import Item
from brgsa_platform.runtime.storage import Folder, is_away, local_copy, short_error
from brgsa_platform.store.ingest_log import IngestLogHandle
from brgsa_platform.store.store import SCHEMA, UNREAD, checksum, hu_histogram

# Workers that one volume may kill before it is refused. Its reader crashes, or it needs more memory than there is.
MAX_DEATHS = 2
_UNREAD_REPORT = "Nothing in its report is understood (another language, or a placeholder)."
_REFUSED = b"brgsa.quarantine"  # key in a shard's footer: the rows for the quarantine table
_DESCRIPTION = [name for name in SCHEMA.names if name != "ct"]
# Encoded volumes are compressed already, and no two are alike.
_COMPRESSION = {name: "none" if name == "ct" else "zstd" for name in SCHEMA.names}


class RefusedVolume(Exception):
    """A volume that goes to the quarantine table.

    Attributes:
        stage: of the work at which it was refused: "list", "report", "read", "strict" or "crash".
        reason: a sentence for the user.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a store.

    Refused volumes are recorded in the footer of their own shard. So a shard accounts for all of its volumes, or is not there.

    Attributes:
        geometry: the grid that every volume is brought to.
        strict: refuse a volume whose flags cast doubt on it (see `brgsa.volumes.quality_warnings`), or of whose report nothing
            is understood.
        trust_geometry: take a geometry that contradicts itself or that no chest has; its flag stays.
    """

    store: Folder
    geometry: Geometry
    strict: bool = False
    trust_geometry: bool = False

    def __call__(self, shard: str, items: Sequence[Item], log: IngestLogHandle | None = None) -> str:
        """Write the shard `shard` (a file name) of these volumes.

        Args:
            log: where the task notes which volume it reads, so that a volume that kills its workers is refused in the end.

        Returns:
            Why the store cannot be written; empty where it was. An exception would make Ray try the shard again.
        """
        refused: list[dict[str, str]] = []
        try:
            with (
                self.store.written_aside(f"volumes/{shard}") as aside,
                pq.ParquetWriter(
                    aside,
                    SCHEMA,
                    compression=_COMPRESSION,
                    use_dictionary=_DESCRIPTION,
                    write_statistics=_DESCRIPTION,
                ) as writer,
            ):
                for row in self._rows(items, refused, log):
                    writer.write_table(row, row_group_size=1)
                writer.add_key_value_metadata({_REFUSED: json.dumps(refused)})
        except OSError as error:
            return short_error(error) or type(error).__name__
        return ""

    def _rows(
        self, items: Sequence[Item], refused: list[dict[str, str]], log: IngestLogHandle | None
    ) -> Iterator[pa.Table]:
        """A table of one row for each volume that can be used; the others are appended to `refused`."""
        for item in items:
            deaths = log.begin(item.volume_id) if log else 0
            try:
                if deaths >= MAX_DEATHS:
                    raise RefusedVolume(
                        "crash",
                        f"{item.source}: {deaths} workers died while reading it (out of memory, or a fault of its reader).",
                    )
                row = self._row(item)
            except RefusedVolume as error:
                refused.append(
                    {
                        "volume_id": item.volume_id,
                        "source": item.source,
                        "stage": error.stage,
                        "reason": error.reason,
                    }
                )
            else:
                yield row
            if log:
                log.finish(item.volume_id)

    def _row(self, item: Item) -> pa.Table:
        """A volume's row, as a table of one row; raises as `_read` does."""
        volume, array = self._read(item)
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
        # Hash the values as Parquet gives them back: its float32 differ from Python's numbers.
        column = SCHEMA.get_field_index("checksum")
        return table.set_column(column, SCHEMA.field(column), pa.array([checksum(table.to_pylist()[0])]))

    def _read(self, item: Item) -> tuple[Volume, npt.NDArray[np.int16]]:
        """A volume as its file gives it, with all flags, and on the store's grid (HU, shape (x, y, z) of the geometry).

        Raises:
            RefusedVolume: it cannot be used.
            OSError: the archive's object store is away.
        """
        if item.refused:
            raise RefusedVolume("list", f"{item.source}: {item.refused}")
        if not item.report and not item.unreported:
            raise RefusedVolume(
                "report", f"{item.source}: it has no report; add one to the table, or leave the volume out."
            )
        try:
            with local_copy(item.path) as path:
                if "://" in item.path and data_files(path):
                    raise RefusedVolume(
                        "read", f"{item.source}: its header names other files; store it as one file (.nrrd, .mha)."
                    )
                volume = read_volume(
                    path, item.metadata, item.series, folders=item.folders, trust_geometry=self.trust_geometry
                )
            array = standardize(volume, self.geometry)
        except RefusedVolume:
            raise
        except VolumeError as error:
            raise RefusedVolume("read", f"{item.source}: {error.reason}") from error
        except Exception as error:  # one strange file among thousands must not end the run
            if isinstance(error, OSError) and is_away(error):
                raise  # otherwise the rest of the archive's scans would all be refused
            # A library's message may name a file of a DICOM series, and the file's name may name the patient.
            detail = "" if item.series else f", {short_error(error)}"
            raise RefusedVolume("read", f"{item.source}: {type(error).__name__}{detail}") from error
        unread = bool(item.report) and not understood(item.report)
        if self.strict and (warnings := [*quality_warnings(volume.flags), *([_UNREAD_REPORT] if unread else [])]):
            raise RefusedVolume("strict", f"{item.source}: {' '.join(warnings)}")
        return replace(volume, flags=(*volume.flags, *([UNREAD] if unread else []))), array


def read_refused(shard: pq.ParquetFile) -> list[dict[str, str]]:
    """The rows for the quarantine table that a shard's footer holds: `volume_id`, `source`, `stage`, `reason`."""
    refused: list[dict[str, str]] = json.loads((shard.metadata.metadata or {}).get(_REFUSED, b"[]"))
    return refused


def read_rows(shard: pq.ParquetFile) -> pa.Table:
    """A shard's rows without the volumes (`ct`)."""
    return shard.read(columns=_DESCRIPTION)


def is_whole(store: Folder, shard: str, volumes: int, size: int | None) -> bool:
    """Whether a shard is there, can be opened, and accounts for as many volumes as planned.

    Args:
        shard: file name.
        volumes: how many the plan gives it.
        size: bytes that it had when its batch was committed; None where it has not been.
    """
    name = f"volumes/{shard}"
    bytes_now = store.size(name)
    if not bytes_now or (size is not None and bytes_now != size):
        return False
    try:
        with store.open(name) as file:
            opened = pq.ParquetFile(file)
            return int(opened.metadata.num_row_groups) + len(read_refused(opened)) == volumes
    except (OSError, ValueError, pa.ArrowInvalid):  # cut short: Parquet's footer is at the end of the file
        return False
