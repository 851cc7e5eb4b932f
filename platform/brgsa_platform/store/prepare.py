"""`brgsa prepare`: an archive to a store, with Ray Data, one task a shard.

Which volume goes into which shard is fixed before anything is read, and a shard appears whole or not at all: a run that was
killed and started again writes what an undisturbed one does, and a run on a grown archive adds what is new.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from brgsa.errors import UserError
from brgsa.volumes import Geometry, decode
from brgsa_platform.layouts import Item, identity_key, read_layout
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session, set_data_context
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store import index as catalog
from brgsa_platform.store import plan
from brgsa_platform.store.store import INDEX_FILE, META_FILE, QUARANTINE_FILE, Meta, Store, read_meta, settings_hash
from brgsa_platform.store.writer import ShardWriter, is_whole
from brgsa_platform.tracking import client as tracking

EXAMPLES = 4  # volumes whose slices are shown in MLflow
STORE_FILES = frozenset({"plans", "volumes", INDEX_FILE, QUARANTINE_FILE, META_FILE, "summaries"})


@dataclass(frozen=True)
class PrepareResult:
    """What a store holds, and what this run added to it."""

    out: str
    volumes: dict[str, int]
    quarantined: int
    fingerprint: str
    added: int = 0

    def summary(self) -> str:
        counts = ", ".join(f"{n} {split}" for split, n in sorted(self.volumes.items()))
        aside = f"; {self.quarantined} in quarantine ({self.out}/{QUARANTINE_FILE})" if self.quarantined else ""
        total = sum(self.volumes.values())
        added = f", {self.added} of them new" if 0 < self.added < total else ""
        return (
            f"{self.out}: {total} volumes ({counts}){added}{aside}. Next: brgsa summarize {self.out} --style positives"
        )


@dataclass(frozen=True)
class Options:
    """`prepare`'s keywords; see there."""

    geometry: Geometry
    validation_fraction: float
    strict: bool
    workers: int | None

    def settings(self) -> dict[str, Any]:
        """Those that a row's content depends on."""
        return {
            "geometry": self.geometry.to_dict(),
            "validation_fraction": self.validation_fraction,
            "strict": self.strict,
        }


def prepare(
    source: Path | str,
    layout: str,
    out: Path | str,
    *,
    geometry: Geometry | None = None,
    validation_fraction: float = 0.1,
    strict: bool = False,
    retry_quarantined: bool = False,
    workers: int | None = None,
    reports: Path | None = None,
    labels: Path | None = None,
    id_key: Path | None = None,
    roots: Sequence[str] = (),
) -> PrepareResult:
    """Read an archive, bring its volumes to one grid and write them as a store, or add to one what it has not yet.

    Volumes that cannot be read, or have no report, go to the quarantine table and the run goes on. Shards that were damaged
    after they had been written are written anew.

    Args:
        out: a path, or a URL such as s3://bucket/store.
        geometry: the grid; default method.md's.
        validation_fraction: share of the training patients that is set aside.
        strict: refuse volumes whose header, table and voxels disagree, instead of flagging them.
        retry_quarantined: try again what was refused before.
        workers: volumes read at a time, each on a CPU and in memory of its own; default as many as there are CPUs.
        reports, labels: tables joined on volume or scan ids; see `layouts.read_layout`.
        id_key: file with the key of the hashes that stand for DICOM's identifiers; see `layouts.identity_key`.
        roots: folders or URLs beside a manifest's own folder that its paths may lead to.

    Raises:
        UserError: the archive's tables are wrong, `out` holds a store of other settings or cannot be written, MLflow does
            not answer, or no volume could be used.
    """
    store = Folder(out)
    options = Options(geometry or Geometry(), validation_fraction, strict, workers)
    key = identity_key(id_key) if layout == "dicom" else None
    items = read_layout(Path(source), layout, validation_fraction, reports=reports, labels=labels, key=key, roots=roots)
    meta = _existing(store, options.settings())
    known = plan.planned(store, meta)
    refused = [row["volume_id"] for row in catalog.quarantined(store)] if meta.batches else []
    plan.check_unchanged(store, items, known, refused)
    again = set(refused) if retry_quarantined else set()
    new = [item for item in items if item.volume_id not in known or item.volume_id in again]
    _check_owners(store, meta, new)
    unfinished = _unfinished(store, meta, {item.volume_id: item for item in items})
    if not new and not unfinished:
        return _result(Store.open(store.url))
    params = {"layout": layout, "volumes": len(items), **options.settings(), **options.geometry.to_dict()}
    tags = {"brgsa.data": settings_hash(options.settings()), "brgsa.layout": layout}
    with tracking.run("prepare", name=f"prepare {store.url.rpartition('/')[2]}", params=params, tags=tags) as run:
        with _writing(store), ray_session():
            store.make()
            store.sweep()
            if unfinished:
                meta = _finish(store, meta, unfinished, options)
            if new:
                number = len(meta.batches)
                plan.write_plan(store, number, new)
                batch = plan.new_batch(new, layout, options.geometry, len(meta.shards))
                meta = replace(meta, batches=(*meta.batches, batch))
                store.write(META_FILE, meta.to_json())
                meta = _finish(store, meta, {number: plan.Work(batch, new)}, options)
        finished = Store.open(store.url)
        result = _result(finished, added=_rows_of(finished, meta) if len(meta.batches) > 1 else 0)
        if not result.volumes:
            raise _forget(store, source)
        _tell(run, finished, result)
    return result


def _existing(store: Folder, settings: Mapping[str, Any]) -> Meta:
    """The store's own record, or that of one to be begun.

    Raises:
        UserError: another store is there, or a folder of other things.
    """
    with _writing(store):
        there = read_meta(store)
        if there is None:
            # A run that found nothing to use leaves its quarantine table, one that was killed at once a plan.
            if any(name not in STORE_FILES and not name.startswith(".") for name in store.names()):
                raise UserError(f"The folder {store} is not empty and no store: choose another --out.")
            return Meta(dict(settings))
    if there.settings != settings:
        changed = [key for key in settings if there.settings.get(key) != settings[key]]
        what = ", ".join(f"{key} was {there.settings.get(key)}, now {settings[key]}" for key in changed)
        raise UserError(f"{store} holds a store of other settings ({what}): choose another --out.")
    return there


def _unfinished(store: Folder, meta: Meta, items: Mapping[str, Item]) -> dict[int, plan.Work]:
    """Batches with shards yet to be written, by number: the one that a killed run left, and any with damaged shards."""
    sizes = store.sizes("volumes") if meta.batches else {}
    found = {}
    for number, batch in enumerate(meta.batches):
        if not batch.complete or any(sizes.get(name) != meta.sizes.get(name) for name in batch.shards):
            found[number] = plan.Work(batch, plan.batch_items(store, number, meta, items))
    return found


def _finish(store: Folder, meta: Meta, works: Mapping[int, plan.Work], options: Options) -> Meta:
    """Write the shards that these batches lack, and count them."""
    for number, work in works.items():
        jobs = [
            name for name in work.batch.shards if not is_whole(store, name, len(work.of(name)), meta.sizes.get(name))
        ]
        if jobs:
            with progress(sum(len(work.of(name)) for name in jobs), "prepare: volumes") as advance:
                _write_shards(
                    ShardWriter(store, options.geometry, options.strict), work, jobs, options.workers, advance
                )
        if work.batch.complete:  # its shards were damaged: count all from here on again
            batches = tuple(replace(b, complete=b.complete and i < number) for i, b in enumerate(meta.batches))
            meta = replace(meta, batches=batches)
    return catalog.count(store, meta)


def _write_shards(
    writer: ShardWriter, work: plan.Work, jobs: Sequence[str], workers: int | None, advance: Callable[..., None]
) -> None:
    import ray

    from brgsa_platform.store.ingest_log import SharedJournal

    set_data_context()
    journal = SharedJournal.start()
    # Once in the object store, as text: tasks take their rows out of it without a copy of the rest.
    items = ray.put(pa.array([json.dumps(item.to_dict(), default=str) for item in work.items], pa.large_string()))
    size = work.batch.per_shard
    rows = [{"shard": name, "start": work.batch.shards.index(name) * size, "count": size} for name in jobs]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _write_shard, fn_kwargs={"writer": writer, "items": [items], "journal": journal}, concurrency=workers
    )
    with _told(journal, advance):
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(
                    f"The store {writer.store} cannot be written ({row['error']}): mend that and run the same command "
                    "again, it goes on where it stopped."
                )


def _write_shard(job: dict[str, Any], writer: ShardWriter, items: Sequence[Any], journal: Any) -> dict[str, Any]:
    import ray

    texts = ray.get(items[0])[job["start"] : job["start"] + job["count"]]
    return {"error": writer(job["shard"], [Item(**json.loads(text)) for text in texts.to_pylist()], journal)}


@contextmanager
def _told(journal: Any, advance: Callable[..., None]) -> Iterator[None]:
    """Show how many volumes are done, from a thread: the driver itself waits for whole shards."""
    stop = threading.Event()

    def follow() -> None:
        shown = 0
        while True:
            last = stop.wait(1.0)
            done = journal.done()
            if done > shown:
                advance(done - shown)
                shown = done
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


@contextmanager
def _writing(store: Folder) -> Iterator[None]:
    """What a disk or an object store refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The store folder {store} cannot be written ({short_error(error)}): mend that and run the same command "
            "again, or choose another --out."
        ) from error


def _check_owners(store: Folder, meta: Meta, new: Sequence[Item]) -> None:
    """Refuse new volumes of a patient that the store has in another split, or of a scan that it has of another patient."""
    if not new or not meta.complete:
        return
    index = Store.open(store.url).index(["patient_id", "split", "scan_id"])
    splits = dict(zip(index["patient_id"].to_pylist(), index["split"].to_pylist(), strict=True))
    patients = dict(zip(index["scan_id"].to_pylist(), index["patient_id"].to_pylist(), strict=True))
    for item in new:
        for owned, now, what in (
            (splits.get(item.patient_id), item.split, "patient stands in the split"),
            (patients.get(item.scan_id), item.patient_id, "scan belongs to the patient"),
        ):
            if owned not in (None, now):
                raise UserError(
                    f"Volume {item.volume_id} cannot be added to {store}: its {what} {owned!r} there, and here {now!r}."
                )


def _forget(store: Folder, source: Path | str) -> UserError:
    """Undo a store in which nothing could be used: what is mended is tried again. Gives the error to raise."""
    refused = catalog.quarantined(store)
    store.delete(META_FILE)
    store.delete(INDEX_FILE)
    for folder in ("volumes", "plans"):
        store.remove(folder)
    return UserError(
        f"None of the {len(refused)} volumes of {source} could be used: {refused[0]['reason']} The others' reasons are in "
        f"{store.at(QUARANTINE_FILE)}."
    )


def _rows_of(store: Store, meta: Meta) -> int:
    """Rows of the last batch."""
    first = meta.batches[-1].first
    return sum(shard >= first for shard in store.index(["shard"])["shard"].to_pylist())


def _result(store: Store, added: int = 0) -> PrepareResult:
    counts = Counter(store.index(["split"])["split"].to_pylist())
    return PrepareResult(store.path, dict(counts), store.quarantine().num_rows, store.fingerprint, added)


def _tell(run: tracking.Run, store: Store, result: PrepareResult) -> None:
    """Counts, stages of refusal, flags and example slices in MLflow; neither reports nor identifiers."""
    from brgsa_platform.runtime.plots import planes_figure

    run.set_tags({"brgsa.data": store.fingerprint})
    stages = Counter(store.quarantine()["stage"].to_pylist())
    flags = Counter(flag for flags in store.index(["flags"])["flags"].to_pylist() for flag in flags)
    run.log_metrics(
        {
            **{f"volumes/{split}": n for split, n in result.volumes.items()},
            "quarantined": result.quarantined,
            **{f"quarantined/{stage}": n for stage, n in stages.items()},
            **{f"flags/{flag.replace(':', '_')}": n for flag, n in flags.items()},
        }
    )
    shown = [(f"volume {i + 1}", volume) for i, volume in enumerate(_examples(store))]
    run.log_figure(planes_figure(shown, store.geometry.spacing), "slices.png")


def _examples(store: Store) -> Iterator[npt.NDArray[np.int16]]:
    """Some volumes, evenly over the store."""
    places = store.index(["shard", "row_group"])
    for row in range(0, len(places), -(-len(places) // EXAMPLES)):
        yield decode(store.encoded(places["shard"][row].as_py(), places["row_group"][row].as_py()))
