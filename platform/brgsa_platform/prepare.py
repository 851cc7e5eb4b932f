"""`brgsa prepare`: an archive to a store, with Ray Data, one task a shard.

Which volume goes into which shard is fixed before anything is read, and a shard appears by a rename: a run that was killed
and started again writes what an undisturbed one does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry, VolumeError, decode, encode, read_volume, standardize
from brgsa_platform import tracking
from brgsa_platform.layouts import LABELS, Item, read_layout
from brgsa_platform.progress import progress
from brgsa_platform.session import quiet_data_context, ray_session
from brgsa_platform.store import FORMAT, Store, read_meta, schema, write_meta

SHARD_BYTES = 256 * 2**20  # of decoded volumes: some 15 of the paper's
LEAST_SHARDS = 16  # where there are as many volumes, so that small stores are prepared in parallel too
EXAMPLES = 3  # volumes whose slices are shown in MLflow

QUARANTINE = pa.schema([(name, pa.string()) for name in ("volume_id", "source", "stage", "reason")])


@dataclass(frozen=True)
class PrepareResult:
    """What a store holds."""

    out: Path
    volumes: dict[str, int]
    quarantined: int
    fingerprint: str

    def summary(self) -> str:
        counts = ", ".join(f"{n} {split}" for split, n in sorted(self.volumes.items()))
        aside = f"; {self.quarantined} in quarantine ({self.out / 'quarantine.parquet'})" if self.quarantined else ""
        total = sum(self.volumes.values())
        return f"{self.out}: {total} volumes ({counts}){aside}. Next: brgsa summarize {self.out} --style positives"


def prepare(
    source: Path | str,
    layout: str,
    out: Path | str,
    *,
    geometry: Geometry | None = None,
    validation_fraction: float = 0.1,
) -> PrepareResult:
    """Read an archive, bring its volumes to one grid and write them as a store; a finished store is left as it is.

    Volumes that cannot be read, or have no report, go to the quarantine table and the run goes on.

    Args:
        geometry: the grid; default method.md's.
        validation_fraction: share of the training patients that is set aside.

    Raises:
        UserError: the archive's tables are wrong, `out` holds another store or cannot be written, MLflow does not answer,
            or no volume could be used.
    """
    source, out, geometry = Path(source), Path(out).absolute(), geometry or Geometry()
    items = read_layout(source, layout, validation_fraction)
    meta = _plan(items, layout, geometry, validation_fraction)
    _claim(out, meta)
    before = read_meta(out)
    assert before is not None
    if before["complete"]:
        shutil.rmtree(out / "quarantine", ignore_errors=True)  # left by a run killed at its very end
        return _result(Store.open(out))
    tags = {"brgsa.data": meta["plan"], "brgsa.layout": layout}
    params = {"layout": layout, "volumes": len(items), "validation_fraction": validation_fraction, **geometry.to_dict()}
    with ray_session(), tracking.run("prepare", name=f"prepare {out.name}", params=params, tags=tags) as run:
        written = _write_shards(items, meta, geometry, out)
        quarantined = _merge_quarantine(out)
        if not written:
            reason = quarantined[0]["reason"] if quarantined else "no reason was recorded"
            raise UserError(
                f"None of the {len(items)} volumes of {source} could be used; the first: {reason}. See "
                f"{out / 'quarantine.parquet'}."
            )
        write_meta(out, {**meta, "complete": True, "fingerprint": _fingerprint(out, meta)})
        shutil.rmtree(out / "quarantine")  # merged into quarantine.parquet
        result = _result(Store.open(out))
        _tell(run, result, quarantined)
    return result


def _plan(items: Sequence[Item], layout: str, geometry: Geometry, validation_fraction: float) -> dict[str, Any]:
    """store.json before anything is written: what the store will be, and a hash of all that it depends on."""
    volume_bytes = 2 * geometry.shape[0] * geometry.shape[1] * geometry.shape[2]
    per_shard = max(1, min(SHARD_BYTES // volume_bytes, -(-len(items) // LEAST_SHARDS)))
    settings = {
        "format": FORMAT,
        "layout": layout,
        "geometry": geometry.to_dict(),
        "validation_fraction": validation_fraction,
        "labels": _label_names(items),
        "volumes_per_shard": per_shard,
        "shards": [f"part-{i:05d}.parquet" for i in range(-(-len(items) // per_shard))],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for item in items:
        digest.update(
            json.dumps({**item.to_dict(), "path": Path(item.path).name}, sort_keys=True, default=str).encode()
        )
    return {**settings, "plan": digest.hexdigest()[:16], "complete": False}


def _label_names(items: Sequence[Item]) -> list[str]:
    """Labels that some volume has, in their published order."""
    present = {name for item in items for name, value in item.labels.items() if value is not None}
    return [name for name in LABELS if name in present]


def _claim(out: Path, meta: dict[str, Any]) -> None:
    """Make the store's folder, or check that the one there is this very store."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = read_meta(out)
        if there is None:
            if any(out.iterdir()):
                raise UserError(f"The folder {out} is not empty and no store: choose another --out.")
            (out / "volumes").mkdir()
            (out / "quarantine").mkdir()
            write_meta(out, meta)
            return
    except OSError as error:
        raise UserError(
            f"The store folder {out} cannot be written ({error.strerror}): choose another --out."
        ) from error
    if there.get("plan") != meta["plan"]:
        changed = [key for key in ("layout", "geometry", "validation_fraction") if there.get(key) != meta[key]]
        what = (
            ", ".join(f"{key} was {there.get(key)}, now {meta[key]}" for key in changed) or "the archive's rows differ"
        )
        raise UserError(f"{out} holds another store ({what}): choose another --out.")


def _write_shards(items: Sequence[Item], meta: dict[str, Any], geometry: Geometry, out: Path) -> int:
    """Write the shards that are not there yet; gives the number of volumes in all shards."""
    import ray

    quiet_data_context()
    for aside in [*out.glob("volumes/.*"), *out.glob("quarantine/.*")]:
        aside.unlink()  # half-written by a run that was killed
    size = meta["volumes_per_shard"]
    jobs = [
        {"shard": name, "items": json.dumps([item.to_dict() for item in items[i * size : (i + 1) * size]], default=str)}
        for i, name in enumerate(meta["shards"])
        if not (out / "volumes" / name).exists()
    ]
    if jobs:
        task = _ShardWriter(out, geometry, tuple(meta["labels"]))
        dataset = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(task)
        left = len(items) - size * (len(meta["shards"]) - len(jobs))
        with progress(max(left, 1), f"prepare {out.name}: volumes") as advance:
            for row in dataset.iter_rows():
                advance(int(row["volumes"]) + int(row["quarantined"]))
    return sum(pq.read_metadata(out / "volumes" / name).num_rows for name in meta["shards"])


@dataclass(frozen=True)
class _ShardWriter:
    """A Ray Data task: one shard's volumes from their files, written aside and renamed."""

    out: Path
    geometry: Geometry
    labels: tuple[str, ...]

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        bad: list[dict[str, str]] = []
        aside = self.out / "volumes" / f".{job['shard']}.{os.getpid()}"
        columns = schema(self.labels)
        written = 0
        with pq.ParquetWriter(
            aside, columns, compression={name: _compression(name) for name in columns.names}
        ) as writer:
            for row in self._rows([Item(**item) for item in json.loads(job["items"])], bad):
                writer.write_table(pa.Table.from_pylist([row], schema=columns), row_group_size=1)
                written += 1
        # The quarantine first: a shard that is there is whole, its refused volumes included.
        note = self.out / "quarantine" / f"{job['shard'].removesuffix('.parquet')}.json"
        note_aside = note.with_name(f".{note.name}.{os.getpid()}")
        note_aside.write_text(json.dumps(bad))
        os.replace(note_aside, note)
        os.replace(aside, self.out / "volumes" / job["shard"])
        return {"volumes": written, "quarantined": len(bad)}

    def _rows(self, items: Sequence[Item], bad: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for item in items:
            if not item.report:
                reason = f"{item.volume_id} has no report: add one to the table, or leave the volume out"
                bad.append(_refused(item, "report", reason))
                continue
            try:
                volume = read_volume(item.path, item.metadata)
            except VolumeError as error:
                bad.append(_refused(item, "read", str(error)))
                continue
            yield {
                "volume_id": item.volume_id,
                "scan_id": item.scan_id,
                "patient_id": item.patient_id,
                "split": item.split,
                "ct": encode(standardize(volume, self.geometry)),
                "shape": list(self.geometry.shape),
                "spacing": list(self.geometry.spacing),
                "report": item.report,
                "labels": {name: item.labels.get(name) for name in self.labels},
                "source": Path(item.path).name,
                "flags": list(volume.flags),
            }


def _compression(column: str) -> str:
    return "none" if column == "ct" else "zstd"  # volumes are compressed already


def _refused(item: Item, stage: str, reason: str) -> dict[str, str]:
    return {"volume_id": item.volume_id, "source": item.path, "stage": stage, "reason": reason}


def _merge_quarantine(out: Path) -> list[dict[str, str]]:
    """The shards' refusals as one table, which is there even when it is empty."""
    rows = [row for note in sorted((out / "quarantine").glob("part-*.json")) for row in json.loads(note.read_text())]
    aside = out / f".quarantine.{os.getpid()}"
    pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE), aside)
    os.replace(aside, out / "quarantine.parquet")
    return rows


def _fingerprint(out: Path, meta: dict[str, Any]) -> str:
    """Hash of the store's settings and rows; what a training's MLflow tag `brgsa.data` names."""
    digest = hashlib.sha256(meta["plan"].encode())
    for name in meta["shards"]:
        table = pq.read_table(out / "volumes" / name, columns=["volume_id", "split"])
        digest.update(json.dumps(table.to_pylist()).encode())
    return digest.hexdigest()[:16]


def _result(store: Store) -> PrepareResult:
    counts = Counter(store.index(["split"])["split"].to_pylist())
    quarantined = pq.read_metadata(store.path / "quarantine.parquet").num_rows
    return PrepareResult(store.path, dict(counts), quarantined, store.fingerprint)


def _tell(run: tracking.Run, result: PrepareResult, quarantined: Sequence[dict[str, str]]) -> None:
    """Counts, reasons and example slices in MLflow; neither reports nor identifiers."""
    from brgsa_platform.figures import planes_figure

    store = Store.open(result.out)
    run.set_tags({"brgsa.data": store.fingerprint})
    run.log_metrics({f"volumes/{split}": n for split, n in result.volumes.items()})
    stages = Counter(row["stage"] for row in quarantined)
    run.log_metrics({"quarantined": result.quarantined, **{f"quarantined/{stage}": n for stage, n in stages.items()}})
    shown = [(f"volume {i + 1}", volume) for i, volume in enumerate(islice(_volumes(store), EXAMPLES))]
    run.log_figure(planes_figure(shown, store.geometry.spacing), "slices.png")


def _volumes(store: Store) -> Iterator[Any]:
    for shard in store.shards():
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            yield decode(file.read_row_group(group, columns=["ct"])["ct"][0].as_py())
