"""The store: Parquet shards of standardised volumes with their reports and labels, and side tables of summaries.

    STORE/store.json                     settings, labels, batches and shards; "complete" only when every shard is there
    STORE/plans/00000.parquet            the volumes of a batch (one `brgsa prepare`), and a digest of each
    STORE/volumes/part-00000.parquet     one volume per row group
    STORE/index.parquet                  every row without its volume, in shard order, with shard and row group
    STORE/quarantine.parquet             the volumes that could not be used, with stage and reason
    STORE/summaries/STYLE/part-00000.parquet
    STORE/labels/part-00000.parquet      what `brgsa labels` read in the reports: a column of statuses for each abnormality

A style's summaries are a column of the index, `summary.STYLE`. They are kept apart from the shards, so that a new style never
rewrites them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry
from brgsa_platform.layouts import LABELS
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.reader import encoded_volume

FORMAT = 2
REPORT = "report"
PROVENANCE = b"brgsa"  # key in a summary table's metadata: JSON of what wrote it
UNREAD = "report:unread"  # flag of a volume of whose report nothing was understood
SUMMARY = "summary."
READ_LABELS = "labels/part-00000.parquet"
GIVEN = "archive"  # where a store's labels come from
# A report names what it finds: what it does not mention counts as absent, as in CT-RATE's labels. A doubt does not tell.
LABEL_OF = {"present": 1, "absent": 0, "not mentioned": 0}
META_FILE, INDEX_FILE, QUARANTINE_FILE, SUMMARY_FILE = (
    "store.json",
    "index.parquet",
    "quarantine.parquet",
    "part-00000.parquet",
)

# A row's HU histogram counts every second voxel along each axis in bins of 64 HU from -1024 up.
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


def hu_histogram(array: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Counts (32,) of every second voxel along each axis of a volume (x, y, z) in HU, in bins of 64 HU from -1024 up."""
    every_second = array[::2, ::2, ::2]
    bins = np.clip((every_second.astype(np.int32) - HU_FIRST) // HU_BIN, 0, HU_BINS - 1)
    return np.bincount(bins.ravel(), minlength=HU_BINS)


@dataclass(frozen=True)
class IngestBatch:
    """What one `brgsa prepare` adds to a store.

    Attributes:
        layout: of the archive.
        volumes: number of them in the plan, refused ones included.
        per_shard: volumes planned for each shard; the last shard may have fewer.
        first: number of the batch's first shard.
        complete: whether all shards are written and in the index.
        phantom: whether the archive is synthetic (`brgsa phantom`).
    """

    layout: str
    volumes: int
    per_shard: int
    first: int
    complete: bool = False
    phantom: bool = False

    @property
    def shards(self) -> list[str]:
        """Names of the batch's shard files, in order."""
        return [f"part-{self.first + i:05d}.parquet" for i in range(-(-self.volumes // self.per_shard))]


@dataclass(frozen=True)
class Meta:
    """The content of store.json.

    Attributes:
        settings: what a row depends on besides its scan (geometry, strictness, share of validation patients); the same for
            all batches of a store.
        labels: names of the abnormalities that are known for some volume, in their published order.
        batches: in the order in which they were added.
        sizes: shard name → bytes, for the shards of complete batches.
        fingerprint: hash of the settings and of every row's id and checksum; empty while no batch is complete.
        format: version of the store's layout.
    """

    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    batches: tuple[IngestBatch, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    format: int = FORMAT

    @property
    def complete(self) -> bool:
        """Whether the store can be read: it has batches, and all are complete."""
        return bool(self.batches) and all(batch.complete for batch in self.batches)

    @property
    def shards(self) -> list[str]:
        """Names of all shard files, in order."""
        return [name for batch in self.batches for name in batch.shards]

    def to_json(self) -> str:
        """The text of store.json."""
        tree = {**asdict(self), "complete": self.complete, "settings_hash": settings_hash(self.settings)}
        return json.dumps(tree, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Read what `to_json` wrote; ValueError, KeyError or TypeError where the text is something else."""
        tree = json.loads(text)
        batches = tuple(IngestBatch(**batch) for batch in tree["batches"])
        labels = tuple(tree["labels"])
        return cls(tree["settings"], labels, batches, tree["sizes"], tree["fingerprint"], tree["format"])


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash (16 hexadecimal digits) that names a store's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """A finished store, read-only.

    Attributes:
        path: absolute path or URL.
        geometry: the grid of its volumes.
        fingerprint: hash that changes with any row; the MLflow tag `brgsa.data`.
    """

    def __init__(self, folder: Folder, meta: Meta) -> None:
        self.folder = folder
        self.path = folder.url
        self.meta = meta
        self.geometry = Geometry.from_dict(meta.settings["geometry"])
        self.fingerprint = meta.fingerprint

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a store.

        Raises:
            UserError: there is none ("no-store"), it is unfinished ("store-unfinished"), or store.json cannot be used (see
                `read_meta`).
        """
        folder = Folder(path)
        meta = read_meta(folder)
        if meta is None:
            raise UserError(
                f"{folder} is not a store (it has no {META_FILE}): write one with `brgsa prepare`.",
                code="no-store",
                value=folder.url,
            )
        if not meta.complete:
            raise UserError(
                f"{folder} is not finished: run its `brgsa prepare` again, it goes on where it stopped.",
                code="store-unfinished",
                value=folder.url,
            )
        return cls(folder, meta)

    @property
    def phantom(self) -> bool:
        """Whether some of its volumes are synthetic (`brgsa phantom`)."""
        return any(batch.phantom for batch in self.meta.batches)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the abnormalities that are known for some volume, in their published order: the archive's labels, or where
        it has none those that `brgsa labels` read in the reports."""
        table = self._labels_in_use
        return self.meta.labels if table is None else tuple(table.column_names[1:])

    @cached_property
    def label_source(self) -> str:
        """Where the labels come from, in words for a table: "archive", or "reports" with what read them and its F1."""
        table = self._labels_in_use
        if table is None:
            return GIVEN
        return str(json.loads((table.schema.metadata or {}).get(PROVENANCE, b"{}")).get("source", "reports"))

    @cached_property
    def read_labels(self) -> pa.Table | None:
        """What `brgsa labels` read: `volume_id`, and a column of statuses for each abnormality; None where it did not run."""
        if not self.folder.exists(READ_LABELS):
            return None
        with self.folder.open(READ_LABELS) as file:
            return pq.read_table(file)

    @cached_property
    def _labels_in_use(self) -> pa.Table | None:
        """`read_labels` where the archive has no label of its own for any volume, else None."""
        if self.read_labels is None:
            return None
        with self.folder.open(INDEX_FILE) as file:
            rows = pq.read_table(file, columns=["labels"])["labels"].to_pylist()
        given = any(value is not None for row in rows for value in (row or {}).values())
        return None if given else self.read_labels

    def shards(self) -> list[str]:
        """Paths or URLs of the shard files, in order."""
        return [self.folder.at(f"volumes/{name}") for name in self.meta.shards]

    def index(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in shard order, without the volumes.

        Args:
            columns: any of a shard's (not `ct`), `shard` (number in `shards()`), `row_group`, `summary.STYLE`; default all
                but the summaries.

        Raises:
            UserError: there is no such column ("unknown-column"), index.parquet is missing or damaged ("index-damaged"), or
                a style has not been computed (see `texts`).
        """
        try:
            with self.folder.open(INDEX_FILE) as file:
                stored = pq.read_schema(file).names
                wanted = list(columns or stored)
                read = [name for name in wanted if not name.startswith(SUMMARY)]
                unknown = [name for name in read if name not in stored]
                if unknown:
                    raise UserError(
                        f"{self.path} has no column {unknown[0]!r}; it has: {', '.join(stored)}.",
                        code="unknown-column",
                        field=unknown[0],
                        value=self.path,
                    )
                table = pq.read_table(file, columns=sorted({*read, "volume_id"}))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.folder.at(INDEX_FILE)} is missing or damaged: prepare the store again in another folder.",
                code="index-damaged",
                field=INDEX_FILE,
                value=self.path,
            ) from error
        if "labels" in read and self._labels_in_use is not None:
            place = table.column_names.index("labels")
            labels = self._labels_read(self._labels_in_use, table["volume_id"].to_pylist())
            table = table.set_column(place, "labels", labels)
        for name in wanted:
            if name not in read:
                texts = self._summaries(name.removeprefix(SUMMARY))
                table = table.append_column(name, pa.array([texts[v] for v in table["volume_id"].to_pylist()]))
        return table.select(wanted)

    def _labels_read(self, read: pa.Table, volumes: list[str]) -> pa.Array:
        """The labels of volumes as `brgsa labels` read them, in the form of the archive's; those added since have none."""
        rows = {row.pop("volume_id"): row for row in read.to_pylist()}
        kind = pa.struct([(name, pa.int8()) for name in self.labels])
        return pa.array([{n: LABEL_OF.get(s) for n, s in rows.get(v, {}).items()} for v in volumes], type=kind)

    def encoded(self, shard: int, row_group: int) -> pa.Buffer:
        """The `ct` cell of a row, for `brgsa.volumes.decode`; see `reader.encoded_volume`."""
        return encoded_volume(self.shards()[shard], row_group)

    def quarantine(self) -> pa.Table:
        """The volumes that could not be used: `volume_id`, `source`, `stage`, `reason`.

        Raises:
            OSError: quarantine.parquet cannot be read.
        """
        with self.folder.open(QUARANTINE_FILE) as file:
            return pq.read_table(file)

    def styles(self) -> list[str]:
        """The summary styles that have been computed, sorted."""
        suffix = f"/{SUMMARY_FILE}"
        return sorted(name.removesuffix(suffix) for name in self.folder.sizes("summaries") if name.endswith(suffix))

    def about_style(self, key: str) -> dict[str, str]:
        """What wrote a style's summaries: `style`, `hash`, `backend`, `model`, as far as its table tells."""
        with self.folder.open(summary_file(key)) as file:
            written = json.loads((pq.read_schema(file).metadata or {}).get(PROVENANCE, b"{}"))
        return {name: str(written[name]) for name in ("style", "hash", "backend", "model") if name in written}

    def texts(self, style: str) -> dict[str, str]:
        """volume_id → text in a style; "report" is the report as written, empty where the archive has none.

        Raises:
            UserError: the style has not been computed ("no-summaries"), or not for all volumes ("summaries-incomplete"); the
                message has the command that does.
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
            raise UserError(
                f"{self.path} holds no summaries of style {style!r}: compute them with {command}.",
                code="no-summaries",
                field=style,
                value=self.path,
            )
        texts = dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))
        if self._reports.keys() - texts.keys():
            raise UserError(
                f"{self.path} has volumes added since its summaries of style {style!r}: complete them with {command}.",
                code="summaries-incomplete",
                field=style,
                value=self.path,
            )
        return texts

    def summary_table(self, style: str) -> pa.Table | None:
        """A style's table (`volume_id`, `summary`); None where it has not been computed."""
        name = summary_file(style)
        if not self.folder.exists(name):
            return None
        with self.folder.open(name) as file:
            return pq.read_table(file)


def summary_file(style: str) -> str:
    """Name of a style's table in a store."""
    return f"summaries/{style}/{SUMMARY_FILE}"


def read_meta(folder: Folder) -> Meta | None:
    """Read store.json; None where there is none.

    Raises:
        UserError: it cannot be read or is damaged ("store-unreadable"), or another version wrote it ("store-format").
    """
    try:
        if not folder.exists(META_FILE):
            return None
        raw = folder.read(META_FILE)
    except OSError as error:
        raise UserError(
            f"{folder.at(META_FILE)} cannot be read ({short_error(error)}): mend that and try again.",
            code="store-unreadable",
            field=META_FILE,
            value=folder.url,
        ) from error
    try:
        text = raw.decode()
        version = json.loads(text).get("format")
        if version == FORMAT:
            return Meta.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder.at(META_FILE)} cannot be read ({short_error(error)}): prepare the store again in another folder.",
            code="store-unreadable",
            field=META_FILE,
            value=folder.url,
        ) from error
    raise UserError(
        f"{folder} has store format {version}, this version reads {FORMAT}: prepare it again.",
        code="store-format",
        field=META_FILE,
        value=version,
    )


def checksum(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row: its other columns as JSON with sorted keys, then the bytes of `ct`.

    Args:
        row: as `to_pylist` of a shard's table gives it; its own `checksum` does not count.
    """
    description = {name: value for name, value in row.items() if name not in ("ct", "checksum")}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    digest.update(row["ct"])
    return digest.hexdigest()


def fingerprint(settings: Mapping[str, Any], ids: Iterable[str], checksums: Iterable[str]) -> str:
    """Hash (16 hexadecimal digits) of a store's settings and of its rows' ids and checksums; the MLflow tag `brgsa.data`."""
    text = json.dumps([settings, list(ids), list(checksums)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
