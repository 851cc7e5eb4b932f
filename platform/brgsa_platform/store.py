"""The store: Parquet shards of standardised volumes with their reports and labels, and side tables of summaries.

    STORE/store.json                     geometry, labels, fingerprint; "complete" only when every shard is there
    STORE/volumes/part-00000.parquet     one volume a row group
    STORE/index.parquet                  every row without its volume, in shard order
    STORE/quarantine.parquet             what could not be used, at which stage and why
    STORE/summaries/STYLE/part-00000.parquet

A summary is a column of the store, `summary.STYLE`; it lies in a table of its own, for a text column is no reason to write
terabytes of shards again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry

FORMAT = 1
REPORT = "report"
SUMMARY = "summary."
INDEX_FILE, QUARANTINE_FILE, SUMMARY_FILE = "index.parquet", "quarantine.parquet", "part-00000.parquet"


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

        Raises:
            UserError: there is no such column, or the style has not been computed.
        """
        try:
            stored = pq.read_schema(self.path / INDEX_FILE).names
            wanted = list(columns or stored)
            read = [name for name in wanted if not name.startswith(SUMMARY)]
            unknown = [name for name in read if name not in stored]
            if unknown:
                raise UserError(f"{self.path} has no column {unknown[0]!r}; it has: {', '.join(stored)}.")
            table = pq.read_table(self.path / INDEX_FILE, columns=sorted({*read, "volume_id"}))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path / INDEX_FILE} is missing or damaged: prepare the store again in another folder."
            ) from error
        for name in wanted:
            if name not in read:
                texts = self._summaries(name.removeprefix(SUMMARY))
                table = table.append_column(name, pa.array([texts[v] for v in table["volume_id"].to_pylist()]))
        return table.select(wanted)

    def styles(self) -> list[str]:
        """Summary styles that have been computed."""
        return sorted(file.parent.name for file in (self.path / "summaries").glob(f"*/{SUMMARY_FILE}"))

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
        file = self.summary_file(style)
        if not file.is_file():
            raise UserError(
                f"{self.path} holds no summaries of style {style!r}: compute them with `brgsa summarize {self.path} --style "
                f"{style}`."
            )
        table = pq.read_table(file)
        return dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))

    def summary_file(self, style: str) -> Path:
        """Where a style's summaries lie once they are computed: columns `volume_id`, `summary`."""
        return self.path / "summaries" / style / SUMMARY_FILE


def read_meta(path: Path) -> dict[str, Any] | None:
    """store.json, or None where there is none."""
    file = path / "store.json"
    if not file.is_file():
        return None
    try:
        meta: dict[str, Any] = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): prepare the store again in another folder.") from error
    return meta


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write store.json."""
    with written_aside(path / "store.json") as aside:
        aside.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; renamed to it at the end, removed on failure."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
