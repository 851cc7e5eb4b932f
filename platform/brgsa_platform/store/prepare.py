"""`brgsa prepare`: turn an archive into a store, or add to a store what is new in an archive.

Which volume goes into which shard is fixed before any scan is read, and a shard appears whole or not at all. So a run that was
killed and started again writes the same bytes as an undisturbed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.phantom import is_phantom
from brgsa.volumes import Geometry, decode
from brgsa_platform.layouts import Item, Reading, TableAccount, identity_key, loose_id, read_archive
from brgsa_platform.runtime.console import print_line
from brgsa_platform.runtime.locks import held, is_claim
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.doubts import Doubts, doubts
from brgsa_platform.store.index import quarantined
from brgsa_platform.store.ingest import write_batches
from brgsa_platform.store.plan import (
    PlannedBatch,
    batch_items,
    check_unchanged,
    new_batch,
    planned_digests,
    write_plan,
)
from brgsa_platform.store.store import (
    INDEX_FILE,
    META_FILE,
    QUARANTINE_FILE,
    UNREAD,
    IngestBatch,
    Meta,
    Store,
    read_meta,
    settings_hash,
)
from brgsa_platform.store.writer import ShardWriter
from brgsa_platform.tracking import client as tracking

EXAMPLES = 4  # volumes whose slices are shown in MLflow
LOG_FILE = "tables.log"
STORE_FILES = frozenset({"plans", "volumes", INDEX_FILE, QUARANTINE_FILE, META_FILE, LOG_FILE, "summaries"})


@dataclass(frozen=True)
class PrepareOptions:
    """How `prepare` reads an archive and writes a store.

    Attributes:
        geometry: the grid that every volume is brought to; default the paper's.
        validation_fraction: share of the training patients that becomes the validation split.
        strict: refuse a volume that any check doubts, its report among them; otherwise it is flagged.
        trust_geometry: take a volume whose geometry contradicts itself or is no chest's, with its flag; otherwise it is
            refused.
        retry_quarantined: try the volumes again that an earlier run refused.
        workers: volumes read at a time, each on a CPU and in memory of its own; default as many as there are CPUs.
        reports, labels: tables beside the archive, joined on volume or scan ids; see `layouts.read_archive`.
        id_key: file with the key of the hashes that replace DICOM's identifiers; see `layouts.identity_key`.
        roots: folders or URLs that a manifest's paths may lead to, besides the manifest's own folder.
    """

    geometry: Geometry = field(default_factory=Geometry)
    validation_fraction: float = 0.1
    strict: bool = False
    trust_geometry: bool = False
    retry_quarantined: bool = False
    workers: int | None = None
    reports: Path | None = None
    labels: Path | None = None
    id_key: Path | None = None
    roots: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """The options that a row's content depends on, as store.json keeps them."""
        return {
            "geometry": self.geometry.to_dict(),
            "validation_fraction": self.validation_fraction,
            "strict": self.strict,
            # Left out where it is off, so that stores from before this option go on.
            **({"trust_geometry": True} if self.trust_geometry else {}),
        }


@dataclass(frozen=True)
class PrepareResult:
    """What a store holds after a run.

    Attributes:
        out: the store's path or URL.
        volumes: split → number of volumes.
        quarantined: volumes that could not be used.
        fingerprint: of the store.
        added: volumes that this run added to a store that had some; 0 for a new store.
        unread: volumes with a report of which nothing was understood.
    """

    out: str
    volumes: dict[str, int]
    quarantined: int
    fingerprint: str
    added: int = 0
    unread: int = 0

    def summary(self) -> str:
        """The result in one line, with the next command, and a warning where reports were not understood."""
        counts = ", ".join(f"{n} {split}" for split, n in sorted(self.volumes.items()))
        quarantine = f"; {self.quarantined} in quarantine ({self.out}/{QUARANTINE_FILE})" if self.quarantined else ""
        total = sum(self.volumes.values())
        added = f", {self.added} of them new" if 0 < self.added < total else ""
        line = f"{self.out}: {total} volumes ({counts}){added}{quarantine}. Next: brgsa summarize {self.out} --style positives"
        if self.unread:
            line += (
                f"\nWarning: of the reports of {self.unread} of {total} volumes nothing was understood (another language, or a "
                f"placeholder): they get no summary. They are flagged {UNREAD}."
            )
        return line


def prepare(
    source: Path | str, layout: str, out: Path | str, options: PrepareOptions = PrepareOptions()
) -> PrepareResult:
    """Read an archive, bring its volumes to one grid, and write them as a store or add the new ones to a store.

    Volumes that cannot be read, or have no report, go to the quarantine table, and the run goes on. Shards that were damaged
    since they were written are written again.

    Args:
        source: the archive's folder, or a manifest.
        layout: how the archive is laid out, one of `layouts.LAYOUTS`.
        out: the store: a path, or a URL such as s3://bucket/store.

    Raises:
        UserError: another `prepare` writes to `out` (see `locks.held`); the archive or its tables are wrong (see
            `layouts.read_archive`); `out` holds other things ("not-a-store-folder"), a store of other settings
            ("other-settings") or of other volumes ("volumes-changed", "volume-missing", "patient-moved"), or cannot be
            written ("store-unwritable"); MLflow does not answer; no volume could be used ("no-usable-volume").
    """
    store = Folder(out)
    _check_folder(store)
    with _held(store):
        archive = _read_archive(source, layout, options)
        items = archive.items
        meta = _existing(store, options.settings())
        new = _new_items(store, meta, items, options.retry_quarantined)
        unfinished = _unfinished(store, meta, {item.volume_id: item for item in items})
        if not new and not unfinished:
            finished = Store.open(store.url)
            found = doubts(finished)
            found.print()
            return _result(finished, found)
        params = {"layout": layout, "volumes": len(items), **options.settings(), **options.geometry.to_dict()}
        tags = {"brgsa.data": settings_hash(options.settings()), "brgsa.layout": layout}
        with tracking.run("prepare", name=f"prepare {store.url.rpartition('/')[2]}", params=params, tags=tags) as run:
            with ray_session(), _storage_errors(store):
                store.sweep()
                _write_log(store, archive.accounts, layout)
                writer = ShardWriter(store, options.geometry, options.strict, options.trust_geometry)
                if unfinished:
                    meta = write_batches(writer, meta, unfinished, options.workers)
                if new:
                    batch = new_batch(new, layout, options.geometry, len(meta.shards))
                    batch = replace(batch, phantom=is_phantom(Path(source)))
                    meta = _add_batch(writer, meta, batch, new, options.workers)
            finished = Store.open(store.url)
            found = doubts(finished)
            result = _result(finished, found, added=_rows_of_last_batch(finished, meta) if len(meta.batches) > 1 else 0)
            if not result.volumes:
                raise _discard_empty(store, source)
            _log_to_mlflow(run, finished, result, found, archive.accounts)
            found.print()
    return result


def _check_folder(store: Folder) -> None:
    """Refuse a folder of other things, before anything is written to it."""
    with _storage_errors(store):
        if read_meta(store) is not None:
            return
        # A run in which no volume could be used leaves its quarantine table; one that was killed at once leaves a plan.
        strange = [n for n in store.names() if n not in STORE_FILES and not n.startswith(".") and not is_claim(n)]
    if strange:
        raise UserError(
            f"The folder {store} is not empty and no store: choose another --out.",
            code="not-a-store-folder",
            field="--out",
            value=strange[0],
        )


@contextmanager
def _held(store: Folder) -> Iterator[None]:
    """Hold the store against a second `prepare`. A folder that was made for it and stays empty is removed again."""
    existed = store.exists()
    try:
        with held(store, "prepare"):
            yield
    finally:
        if not existed and not store.remote:
            with suppress(OSError):  # it holds a store
                Path(store.url).rmdir()


def _read_archive(source: Path | str, layout: str, options: PrepareOptions) -> Reading:
    """Read the archive and say what became of its tables.

    Raises:
        UserError: see `layouts.read_archive`; with --strict also where ids of a table differ from the archive's by their
            spelling ("doubtful-ids").
    """
    archive = read_archive(
        Path(source),
        layout,
        options.validation_fraction,
        reports=options.reports,
        labels=options.labels,
        key=identity_key(options.id_key) if layout == "dicom" else None,
        roots=options.roots,
    )
    for account in archive.accounts:
        print_line(account.line())
    doubtful = [account for account in archive.accounts if account.near or account.alike]
    if options.strict and doubtful:
        number = doubtful[0].near + doubtful[0].alike
        raise UserError(
            f"{number} ids of {doubtful[0].path} differ from others only by leading zeros, case, a decimal or a folder: write "
            "them alike, or prepare without --strict.",
            code="doubtful-ids",
            field=doubtful[0].path,
            value=number,
        )
    return archive


def _write_log(store: Folder, accounts: Sequence[TableAccount], layout: str) -> None:
    """Write the store's own log of the tables, where rows of one found no volume.

    It names the first of them by their ids. DICOM's identifiers never enter a store: there it has the rows' numbers.
    """
    if any(account.lost for account in accounts):
        store.write(LOG_FILE, "".join(f"{account.log_line(with_ids=layout != 'dicom')}\n" for account in accounts))
    else:
        store.delete(LOG_FILE)


def _existing(store: Folder, settings: Mapping[str, Any]) -> Meta:
    """The store's own store.json, or that of a store to be begun.

    Raises:
        UserError: the store has other settings.
    """
    meta = read_meta(store)
    if meta is None:
        return Meta(dict(settings))
    if meta.settings != settings:
        changed = [key for key in {**meta.settings, **settings} if meta.settings.get(key) != settings.get(key)]
        difference = ", ".join(f"{key} was {meta.settings.get(key)}, now {settings.get(key)}" for key in changed)
        raise UserError(
            f"{store} holds a store of other settings ({difference}): choose another --out.",
            code="other-settings",
            field="--out",
            value=tuple(changed),
        )
    return meta


def _new_items(store: Folder, meta: Meta, items: Sequence[Item], retry: bool) -> list[Item]:
    """The archive's volumes that the store does not know yet, and with `retry` those in quarantine.

    Raises:
        UserError: a stored volume, patient or scan is described differently now.
    """
    digests = planned_digests(store, meta)
    refused = [row["volume_id"] for row in quarantined(store)] if meta.batches else []
    check_unchanged(store, items, digests, refused)
    again = set(refused) if retry else set()
    new = [item for item in items if item.volume_id not in digests or item.volume_id in again]
    if new and meta.complete:
        _check_owners(store, new)
    return new


def _check_owners(store: Folder, new: Sequence[Item]) -> None:
    """Refuse a new volume whose patient the store has in another split, or whose scan belongs to another patient there."""
    index = Store.open(store.url).index(["patient_id", "split", "scan_id"])
    names = map(loose_id, index["patient_id"].to_pylist())  # one patient written in two ways is one
    splits = dict(zip(names, index["split"].to_pylist(), strict=True))
    patients = dict(zip(index["scan_id"].to_pylist(), index["patient_id"].to_pylist(), strict=True))
    for item in new:
        for stored, now, column, relation in (
            (splits.get(loose_id(item.patient_id)), item.split, "split", "patient stands in the split"),
            (patients.get(item.scan_id), item.patient_id, "patient_id", "scan belongs to the patient"),
        ):
            if stored not in (None, now):
                raise UserError(
                    f"Volume {item.volume_id} cannot be added to {store}: its {relation} {stored!r} there, and here "
                    f"{now!r}.",
                    code="patient-moved",
                    field=column,
                    value=item.volume_id,
                )


def _unfinished(store: Folder, meta: Meta, items: Mapping[str, Item]) -> dict[int, PlannedBatch]:
    """Number → batch, for each batch that a killed run left or that has damaged shards.

    Args:
        items: volume_id → volume of the archive.
    """
    sizes = store.sizes("volumes") if meta.batches else {}
    unfinished = {}
    for number, batch in enumerate(meta.batches):
        if not batch.complete or any(sizes.get(name) != meta.sizes.get(name) for name in batch.shards):
            unfinished[number] = PlannedBatch(batch, batch_items(store, number, meta, items))
    return unfinished


def _add_batch(writer: ShardWriter, meta: Meta, batch: IngestBatch, new: Sequence[Item], workers: int | None) -> Meta:
    """Plan a batch of these volumes, write its shards and commit it; gives store.json as it is then."""
    store = writer.store
    number = len(meta.batches)
    write_plan(store, number, new)
    meta = replace(meta, batches=(*meta.batches, batch))
    store.write(META_FILE, meta.to_json())
    return write_batches(writer, meta, {number: PlannedBatch(batch, new)}, workers)


@contextmanager
def _storage_errors(store: Folder) -> Iterator[None]:
    """Turn what a disk or an object store refuses into one sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError) and error.errno is None:
            raise  # Ray's own; a system's or an object store's has a number or another type
        raise UserError(
            f"The store folder {store} cannot be written ({short_error(error)}): mend that and run the same command "
            "again, or choose another --out.",
            code="store-unwritable",
            field="--out",
            value=short_error(error),
        ) from error


def _discard_empty(store: Folder, source: Path | str) -> UserError:
    """Remove a store in which no volume could be used, so that the next run tries all again; gives the error to raise."""
    refused = quarantined(store)
    store.delete(META_FILE)
    store.delete(INDEX_FILE)
    store.delete(LOG_FILE)
    for folder in ("volumes", "plans"):
        store.remove(folder)
    return UserError(
        f"None of the {len(refused)} volumes of {source} could be used: {refused[0]['reason']} The others' reasons are in "
        f"{store.at(QUARANTINE_FILE)}.",
        code="no-usable-volume",
        field=str(source),
        value=len(refused),
    )


def _rows_of_last_batch(store: Store, meta: Meta) -> int:
    first = meta.batches[-1].first
    return sum(shard >= first for shard in store.index(["shard"])["shard"].to_pylist())


def _result(store: Store, found: Doubts, added: int = 0) -> PrepareResult:
    counts = Counter(store.index(["split"])["split"].to_pylist())
    unread = found.by_flag.get(UNREAD, 0)
    return PrepareResult(store.path, dict(counts), store.quarantine().num_rows, store.fingerprint, added, unread)


def _log_to_mlflow(
    run: tracking.Run, store: Store, result: PrepareResult, found: Doubts, accounts: Sequence[TableAccount]
) -> None:
    """Counts, stages of refusal, flags, what became of the tables, and example slices; neither reports nor identifiers."""
    from brgsa_platform.runtime.plots import planes_figure

    lines = {f"brgsa.table.{number}": account.line() for number, account in enumerate(accounts, start=1)}
    run.set_tags({"brgsa.data": store.fingerprint, **lines})
    stages = Counter(store.quarantine()["stage"].to_pylist())
    run.log_metrics(
        {
            **{f"volumes/{split}": n for split, n in result.volumes.items()},
            "quarantined": result.quarantined,
            **{f"quarantined/{stage}": n for stage, n in stages.items()},
            **{f"flags/{flag.replace(':', '_')}": n for flag, n in found.by_flag.items()},
        }
    )
    examples = [(f"volume {i + 1}", volume) for i, volume in enumerate(_examples(store))]
    run.log_figure(planes_figure(examples, store.geometry.spacing), "slices.png")


def _examples(store: Store) -> Iterator[npt.NDArray[np.int16]]:
    """At most `EXAMPLES` volumes (x, y, z) in HU, spread evenly over the store."""
    places = store.index(["shard", "row_group"])
    for row in range(0, len(places), -(-len(places) // EXAMPLES)):
        yield decode(store.encoded(places["shard"][row].as_py(), places["row_group"][row].as_py()))
