"""One shard of a store: its volumes from their files, written aside and renamed. What a Ray Data task does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.volumes import Geometry, VolumeError, encode, read_volume, standardize
from brgsa_platform.layouts import Item
from brgsa_platform.store import schema, written_aside

QUARANTINE = pa.schema([(name, pa.string()) for name in ("volume_id", "source", "stage", "reason")])
_REFUSED = b"brgsa.quarantine"


class Refused(Exception):
    """A volume that goes to the quarantine table, and at which stage of the work."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason


@dataclass(frozen=True)
class ShardWriter:
    """Called with {"shard": file name, "items": JSON of its `Item`s}, writes that shard.

    The refused volumes stand in the shard's own footer, so that a shard that is there is whole.

    Gives the number of `volumes` and of `quarantined` ones, and an `error` (else empty) where the disk refused.
    """

    out: Path
    geometry: Geometry
    labels: tuple[str, ...]

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        items = [Item(**item) for item in json.loads(job["items"])]
        refused: list[dict[str, str]] = []
        columns = schema(self.labels)
        # Volumes are compressed already.
        compression = {name: "none" if name == "ct" else "zstd" for name in columns.names}
        try:
            with (
                written_aside(self.out / "volumes" / job["shard"]) as aside,
                pq.ParquetWriter(aside, columns, compression=compression) as writer,
            ):
                for row in self._rows(items, refused):
                    writer.write_table(pa.Table.from_pylist([row], schema=columns), row_group_size=1)
                writer.add_key_value_metadata({_REFUSED: json.dumps(refused)})
        except OSError as error:
            return {"volumes": 0, "quarantined": 0, "error": str(error.strerror or error)}
        return {"volumes": len(items) - len(refused), "quarantined": len(refused), "error": ""}

    def _rows(self, items: Sequence[Item], refused: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for item in items:
            try:
                yield self._row(item)
            except Refused as error:
                about = {"volume_id": item.volume_id, "source": item.source}
                refused.append({**about, "stage": error.stage, "reason": error.reason})

    def _row(self, item: Item) -> dict[str, Any]:
        if not item.report:
            raise Refused("report", f"{item.source}: it has no report; add one to the table, or leave the volume out.")
        try:
            volume = read_volume(item.path, item.metadata)
            array = standardize(volume, self.geometry)
        except VolumeError as error:
            raise Refused("read", f"{item.source}: {error.reason}") from error
        except Exception as error:  # one strange file among thousands must not end the run
            raise Refused(
                "read", f"{item.source}: {type(error).__name__}, {str(error).partition(chr(10))[0]}"
            ) from error
        return {
            "volume_id": item.volume_id,
            "scan_id": item.scan_id,
            "patient_id": item.patient_id,
            "split": item.split,
            "ct": encode(array),
            "shape": list(array.shape),
            "spacing": list(self.geometry.spacing),
            "report": item.report,
            "labels": {name: item.labels.get(name) for name in self.labels},
            "source": item.source,
            "flags": list(volume.flags),
        }


def read_refused(shard: Path) -> list[dict[str, str]]:
    """The rows of the quarantine table that came up while a shard was written."""
    refused: list[dict[str, str]] = json.loads((pq.read_metadata(shard).metadata or {}).get(_REFUSED, b"[]"))
    return refused


def read_rows(shard: Path) -> pa.Table:
    """A shard's rows without the volumes."""
    file = pq.ParquetFile(shard)
    return file.read(columns=[name for name in file.schema_arrow.names if name != "ct"])
