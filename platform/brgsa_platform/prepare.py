"""`brgsa prepare`: an archive to a store, with Ray Data, one task a shard.

Which volume goes into which shard is fixed before anything is read, and a shard appears by a rename: a run that was killed
and started again writes what an undisturbed one does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.labels import CT_RATE
from brgsa.volumes import Geometry, decode
from brgsa_platform import tracking
from brgsa_platform.layouts import LABELS, Item, read_layout
from brgsa_platform.progress import progress
from brgsa_platform.session import quiet_data_context, ray_session
from brgsa_platform.shards import QUARANTINE, ShardWriter, read_refused, read_rows
from brgsa_platform.store import FORMAT, INDEX_FILE, QUARANTINE_FILE, Store, read_meta, write_meta, written_aside

SHARD_BYTES = 256 * 2**20  # of decoded volumes: some 15 of the paper's
LEAST_SHARDS = 16  # where there are as many volumes, so that small stores are prepared in parallel too
EXAMPLES = 4  # volumes whose slices are shown in MLflow


@dataclass(frozen=True)
class PrepareResult:
    """What a store holds."""

    out: Path
    volumes: dict[str, int]
    quarantined: int
    fingerprint: str

    def summary(self) -> str:
        counts = ", ".join(f"{n} {split}" for split, n in sorted(self.volumes.items()))
        aside = f"; {self.quarantined} in quarantine ({self.out / QUARANTINE_FILE})" if self.quarantined else ""
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
    if _is_finished(out, meta):
        return _result(Store.open(out))
    tags = {"brgsa.data": meta["plan"], "brgsa.layout": layout}
    params = {"layout": layout, "volumes": len(items), "validation_fraction": validation_fraction, **geometry.to_dict()}
    with tracking.run("prepare", name=f"prepare {out.name}", params=params, tags=tags) as run:
        _claim(out, meta)
        with ray_session():
            _write_shards(items, meta, geometry, out)
        refused = _merge(out, meta)
        if len(refused) == len(items):
            # Nothing here counts as a store: what is mended is tried again.
            shutil.rmtree(out / "volumes")
            for name in (INDEX_FILE, "store.json"):
                (out / name).unlink()
            raise UserError(
                f"None of the {len(items)} volumes of {source} could be used: {refused[0]['reason']} The others' reasons "
                f"are in {out / QUARANTINE_FILE}."
            )
        write_meta(out, {**meta, "complete": True, "fingerprint": _fingerprint(out, meta)})
        result = _result(Store.open(out))
        _tell(run, result, refused)
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
    """Labels that some volume has, in their published order; CT-RATE's, all unknown, where no volume has any."""
    present = {name for item in items for name, value in item.labels.items() if value is not None}
    return [name for name in LABELS if name in present] or list(CT_RATE)


def _is_finished(out: Path, meta: dict[str, Any]) -> bool:
    """Whether `out` is this very store, whole already.

    Raises:
        UserError: it is another one, or a folder of other things.
    """
    there = read_meta(out)
    if there is None:
        if out.is_dir() and any(entry.name != QUARANTINE_FILE for entry in out.iterdir()):
            raise UserError(f"The folder {out} is not empty and no store: choose another --out.")
        return False
    if there.get("plan") != meta["plan"]:
        changed = [key for key in ("layout", "geometry", "validation_fraction") if there.get(key) != meta[key]]
        what = ", ".join(f"{key} was {there.get(key)}, now {meta[key]}" for key in changed)
        raise UserError(
            f"{out} holds another store ({what or 'the rows of the archive were others'}): choose another --out."
        )
    return bool(there["complete"])


def _claim(out: Path, meta: dict[str, Any]) -> None:
    """Make the store's folder, store.json saying what it is going to be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_meta(out, meta)
        (out / "volumes").mkdir(exist_ok=True)
        for aside in [*out.glob(".*"), *out.glob("volumes/.*")]:
            aside.unlink(missing_ok=True)  # half-written by a run that was killed
    except OSError as error:
        raise UserError(
            f"The store folder {out} cannot be written ({error.strerror}): choose another --out."
        ) from error


def _write_shards(items: Sequence[Item], meta: dict[str, Any], geometry: Geometry, out: Path) -> None:
    """Write the shards that are not there yet."""
    import ray

    quiet_data_context()
    size = meta["volumes_per_shard"]
    jobs = [
        {"shard": name, "items": json.dumps([item.to_dict() for item in items[i * size : (i + 1) * size]], default=str)}
        for i, name in enumerate(meta["shards"])
        if not (out / "volumes" / name).exists()
    ]
    if not jobs:
        return
    writer = ShardWriter(out, geometry, tuple(meta["labels"]))
    dataset = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(writer)
    with progress(sum(len(json.loads(job["items"])) for job in jobs), f"prepare {out.name}: volumes") as advance:
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(
                    f"The store {out} cannot be written ({row['error']}): mend that and run the same command again, it goes "
                    "on where it stopped."
                )
            advance(int(row["volumes"]) + int(row["quarantined"]))


def _merge(out: Path, meta: dict[str, Any]) -> list[dict[str, str]]:
    """Write the index and the quarantine table from the shards; gives the rows of the latter."""
    shards = [out / "volumes" / name for name in meta["shards"]]
    refused = [row for shard in shards for row in read_refused(shard)]
    try:
        with written_aside(out / QUARANTINE_FILE) as aside:
            pq.write_table(pa.Table.from_pylist(refused, schema=QUARANTINE), aside)
        with written_aside(out / INDEX_FILE) as aside:
            pq.write_table(pa.concat_tables([read_rows(shard) for shard in shards]), aside, compression="zstd")
    except OSError as error:
        raise UserError(
            f"The store {out} cannot be written ({error.strerror or error}): mend that and run the same command again."
        ) from error
    return refused


def _fingerprint(out: Path, meta: dict[str, Any]) -> str:
    """Hash of the store's settings and rows; what a training's MLflow tag `brgsa.data` names."""
    rows = pq.read_table(out / INDEX_FILE, columns=["volume_id", "split"]).to_pylist()
    return hashlib.sha256((meta["plan"] + json.dumps(rows)).encode()).hexdigest()[:16]


def _result(store: Store) -> PrepareResult:
    counts = Counter(store.index(["split"])["split"].to_pylist())
    quarantined = pq.read_metadata(store.path / QUARANTINE_FILE).num_rows
    return PrepareResult(store.path, dict(counts), quarantined, store.fingerprint)


def _tell(run: tracking.Run, result: PrepareResult, refused: Sequence[dict[str, str]]) -> None:
    """Counts, stages of refusal, flags and example slices in MLflow; neither reports nor identifiers."""
    from brgsa_platform.figures import planes_figure

    store = Store.open(result.out)
    run.set_tags({"brgsa.data": store.fingerprint})
    stages = Counter(row["stage"] for row in refused)
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
    """The first volumes of some shards, evenly over the store."""
    shards = [shard for shard in store.shards() if pq.read_metadata(shard).num_row_groups]
    for shard in shards[:: -(-len(shards) // EXAMPLES)]:
        yield decode(pq.ParquetFile(shard).read_row_group(0, columns=["ct"])["ct"][0].as_py())
