"""The store: Parquet shards of standardised volumes with their reports and labels, and side tables of summaries.

    STORE/store.json                     geometry, labels, fingerprint; "complete" only when every shard is there
    STORE/volumes/part-00000.parquet     one volume a row group
    STORE/summaries/STYLE/part-00000.parquet
    STORE/quarantine.parquet             what could not be used, at which stage and why

A summary is a column of the store, `summary.STYLE`; it lies in a table of its own, for a text column is no reason to write
terabytes of shards again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry

FORMAT = 1
REPORT = "report"
INDEX = ("volume_id", "scan_id", "patient_id", "split", "shape", "spacing", "report", "labels", "source", "flags")


def schema(labels: Sequence[str]) -> pa.Schema:
    """The columns of a shard. A label is 1, 0 or null (unknown)."""
    return pa.schema(
        [
            ("volume_id", pa.string()),
            ("scan_id", pa.string()),
            ("patient_id", pa.string()),
            ("split", pa.string()),
            ("ct", pa.large_binary()),
            ("shape", pa.list_(pa.int32())),
            ("spacing", pa.list_(pa.float32())),
            ("report", pa.string()),
            ("labels", pa.struct([(name, pa.int8()) for name in labels])),
            ("source", pa.string()),
            ("flags", pa.list_(pa.string())),
        ]
    )


class Store:
    """A finished store, read-only."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.geometry = Geometry.from_dict(meta["geometry"])
        self.labels: tuple[str, ...] = tuple(meta["labels"])
        self.fingerprint: str = meta["fingerprint"]

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a store.

        Raises:
            UserError: there is none, it is unfinished, or it was written by another version.
        """
        path = Path(path)
        meta = read_meta(path)
        if meta is None:
            raise UserError(f"{path} is not a store (it has no store.json): write one with `brgsa prepare`.")
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{path} has store format {meta.get('format')}, this version reads {FORMAT}: prepare it again."
            )
        if not meta["complete"]:
            raise UserError(f"{path} is not finished: run its `brgsa prepare` again, it goes on where it stopped.")
        return cls(path, meta)

    def shards(self) -> list[str]:
        """Paths of the shard files, in order."""
        return [str(self.path / "volumes" / name) for name in self.meta["shards"]]

    def index(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in shard order without the volumes themselves.

        Args:
            columns: of a shard (not `ct`), or `summary.STYLE`; default all of a shard's.
        """
        wanted = list(columns or INDEX)
        stored = [name for name in wanted if not name.startswith("summary.")]
        read = stored if "volume_id" in stored else [*stored, "volume_id"]
        table = pa.concat_tables([pq.read_table(shard, columns=read) for shard in self.shards()])
        for name in wanted:
            if name not in stored:
                texts = self._summaries(name.removeprefix("summary."))
                table = table.append_column(name, pa.array([texts[v] for v in table["volume_id"].to_pylist()]))
        return table.select(wanted)

    def styles(self) -> list[str]:
        """Summary styles that have been computed."""
        folder = self.path / "summaries"
        return (
            sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
            if folder.is_dir()
            else []
        )

    def texts(self, style: str) -> dict[str, str]:
        """volume_id → text in a style; "report" is the report as written.

        Raises:
            UserError: the style has not been computed; names the command that does.
        """
        return self._reports if style == REPORT else self._summaries(style)

    @cached_property
    def _reports(self) -> dict[str, str]:
        table = self.index(["volume_id", "report"])
        return dict(zip(table["volume_id"].to_pylist(), table["report"].to_pylist(), strict=True))

    def _summaries(self, style: str) -> dict[str, str]:
        folder = self.path / "summaries" / style
        if not folder.is_dir():
            raise UserError(
                f"{self.path} holds no summaries of style {style!r}: compute them with `brgsa summarize {self.path} --style "
                f"{style}`."
            )
        table = pq.read_table(str(folder))
        return dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))


def read_meta(path: Path) -> dict[str, Any] | None:
    """store.json, or None where there is none."""
    file = path / "store.json"
    if not file.is_file():
        return None
    try:
        meta: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): prepare the store again in another folder.") from error
    return meta


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write store.json aside and rename it."""
    aside = path / f".store.json.{os.getpid()}"
    aside.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    os.replace(aside, path / "store.json")
