"""The store: Parquet shards of standardised volumes with their reports and labels, and side tables of summaries.

    STORE/store.json                     settings, labels, batches and shards; "complete" only when every shard is there
    STORE/plans/00000.parquet            the volumes that a batch (one `brgsa prepare`) is made of, and a digest of each
    STORE/volumes/part-00000.parquet     one volume a row group
    STORE/index.parquet                  every row without its volume, in shard order, and where it lies
    STORE/quarantine.parquet             what could not be used, at which stage and why
    STORE/summaries/STYLE/part-00000.parquet

A summary is a column of the store, `summary.STYLE`; it lies in a table of its own, for a text column is no reason to write
terabytes of shards again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry
from brgsa_platform.layouts import LABELS
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.reader import encoded_volume

FORMAT = 2
REPORT = "report"
SUMMARY = "summary."
META_FILE, INDEX_FILE, QUARANTINE_FILE, SUMMARY_FILE = (
    "store.json",
    "index.parquet",
    "quarantine.parquet",
    "part-00000.parquet",
)

# HU histogram of a row: counts of every second voxel along each axis, in 64-HU bins from -1024 up.
HU_BINS, HU_BIN, HU_FIRST = 32, 64, -1024

SCHEMA = pa.schema(
    [
        ("volume_id", pa.string()),
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("ct", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),
        ("spacing", pa.list_(pa.float32())),
        ("source_shape", pa.list_(pa.int32())),
        ("source_spacing", pa.list_(pa.float32())),
        ("hu", pa.list_(pa.int32())),
        ("report", pa.string()),
        ("labels", pa.struct([(name, pa.int8()) for name in LABELS])),
        ("source", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("checksum", pa.string()),
    ]
)
QUARANTINE = pa.schema([(name, pa.string()) for name in ("volume_id", "source", "stage", "reason")])


@dataclass(frozen=True)
class Batch:
    """The volumes of one `brgsa prepare`: shards `first` to `first + shards - 1`, `per_shard` volumes each.

    Attributes:
        volumes: in the plan, refused ones included.
        complete: whether every shard has been counted.
    """

    layout: str
    volumes: int
    per_shard: int
    first: int
    complete: bool = False

    @property
    def shards(self) -> list[str]:
        """Names of its shard files."""
        return [f"part-{self.first + i:05d}.parquet" for i in range(-(-self.volumes // self.per_shard))]


@dataclass(frozen=True)
class Meta:
    """store.json.

    Attributes:
        settings: what a row depends on besides its scan (geometry, strictness, share of validation patients); a store never
            mixes two.
        labels: those that some volume has, in their published order.
        sizes: bytes of each counted shard.
        fingerprint: hash of the settings and of every row's id and checksum; "" while incomplete.
    """

    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    batches: tuple[Batch, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    format: int = FORMAT

    @property
    def complete(self) -> bool:
        return bool(self.batches) and all(batch.complete for batch in self.batches)

    @property
    def shards(self) -> list[str]:
        """Names of all shard files, in order."""
        return [name for batch in self.batches for name in batch.shards]

    def to_json(self) -> str:
        about = {**asdict(self), "complete": self.complete, "settings_hash": settings_hash(self.settings)}
        return json.dumps(about, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Meta:
        tree = json.loads(text)
        batches = tuple(Batch(**batch) for batch in tree["batches"])
        labels = tuple(tree["labels"])
        return cls(tree["settings"], labels, batches, tree["sizes"], tree["fingerprint"], tree["format"])


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Names a preprocessing configuration."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """A finished store, read-only.

    Attributes:
        path: absolute path or URL.
    """

    def __init__(self, folder: Folder, meta: Meta) -> None:
        self.folder = folder
        self.path = folder.url
        self.meta = meta
        self.geometry = Geometry.from_dict(meta.settings["geometry"])
        self.labels = meta.labels
        self.fingerprint = meta.fingerprint

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a store.

        Raises:
            UserError: there is none, it is unfinished, or it was written by another version.
        """
        folder = Folder(path)
        meta = read_meta(folder)
        if meta is None:
            raise UserError(f"{folder} is not a store (it has no {META_FILE}): write one with `brgsa prepare`.")
        if not meta.complete:
            raise UserError(f"{folder} is not finished: run its `brgsa prepare` again, it goes on where it stopped.")
        return cls(folder, meta)

    def shards(self) -> list[str]:
        """Paths or URLs of the shard files, in order."""
        return [self.folder.at(f"volumes/{name}") for name in self.meta.shards]

    def index(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in shard order without the volumes themselves.

        Args:
            columns: of a shard (not `ct`), `shard` (number in `shards()`), `row_group`, or `summary.STYLE`; default all but
                the summaries.

        Raises:
            UserError: there is no such column, or the style has not been computed.
        """
        try:
            with self.folder.open(INDEX_FILE) as file:
                stored = pq.read_schema(file).names
                wanted = list(columns or stored)
                read = [name for name in wanted if not name.startswith(SUMMARY)]
                unknown = [name for name in read if name not in stored]
                if unknown:
                    raise UserError(f"{self.path} has no column {unknown[0]!r}; it has: {', '.join(stored)}.")
                table = pq.read_table(file, columns=sorted({*read, "volume_id"}))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.folder.at(INDEX_FILE)} is missing or damaged: prepare the store again in another folder."
            ) from error
        for name in wanted:
            if name not in read:
                texts = self._summaries(name.removeprefix(SUMMARY))
                table = table.append_column(name, pa.array([texts[v] for v in table["volume_id"].to_pylist()]))
        return table.select(wanted)

    def encoded(self, shard: int, row_group: int) -> pa.Buffer:
        """The `ct` cell of a row, still encoded; without a copy where the store lies on this machine."""
        return encoded_volume(self.shards()[shard], row_group)

    def quarantine(self) -> pa.Table:
        """What could not be used: `volume_id`, `source`, `stage`, `reason`."""
        with self.folder.open(QUARANTINE_FILE) as file:
            return pq.read_table(file)

    def styles(self) -> list[str]:
        """Summary styles that have been computed."""
        suffix = f"/{SUMMARY_FILE}"
        return sorted(name.removesuffix(suffix) for name in self.folder.sizes("summaries") if name.endswith(suffix))

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
        command = f"`brgsa summarize {self.path} --style {style}`"
        table = self.summary_table(style)
        if table is None:
            raise UserError(f"{self.path} holds no summaries of style {style!r}: compute them with {command}.")
        texts = dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))
        if self._reports.keys() - texts.keys():
            raise UserError(
                f"{self.path} has volumes added since its summaries of style {style!r}: complete them with {command}."
            )
        return texts

    def summary_table(self, style: str) -> pa.Table | None:
        """A style's side table (`volume_id`, `summary`), None where it has not been computed."""
        name = summary_name(style)
        if not self.folder.exists(name):
            return None
        with self.folder.open(name) as file:
            return pq.read_table(file)


def summary_name(style: str) -> str:
    """Where a style's summaries lie in a store."""
    return f"summaries/{style}/{SUMMARY_FILE}"


def read_meta(folder: Folder) -> Meta | None:
    """store.json, or None where there is none.

    Raises:
        UserError: it cannot be read, or another version wrote it.
    """
    try:
        if not folder.exists(META_FILE):
            return None
        raw = folder.read(META_FILE)
    except OSError as error:
        raise UserError(
            f"{folder.at(META_FILE)} cannot be read ({short_error(error)}): mend that and try again."
        ) from error
    try:
        text = raw.decode()
        written = json.loads(text).get("format")
        if written == FORMAT:
            return Meta.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder.at(META_FILE)} cannot be read ({short_error(error)}): prepare the store again in another folder."
        ) from error
    raise UserError(f"{folder} has store format {written}, this version reads {FORMAT}: prepare it again.")


def checksum(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row: its other columns as JSON with sorted keys, then the bytes of `ct`.

    Args:
        row: as `to_pylist` of a shard's table gives it; a `checksum` in it is left out.
    """
    about = {name: value for name, value in row.items() if name not in ("ct", "checksum")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(row["ct"])
    return digest.hexdigest()


def fingerprint(settings: Mapping[str, Any], ids: Iterable[str], checksums: Iterable[str]) -> str:
    """Hash of a store's content; what the MLflow tag `brgsa.data` names."""
    text = json.dumps([settings, list(ids), list(checksums)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
