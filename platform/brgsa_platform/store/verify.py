"""`brgsa store verify`: every row of a store read and compared with its checksum and with the index, with Ray Data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.volumes import decode
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session, set_data_context
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.store import Store, checksum


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written."""

    shard: str
    volume_id: str
    problem: str


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found.

    Attributes:
        discarded: shards removed, to be written anew.
    """

    path: str
    volumes: int
    shards: int
    damage: list[Damage]
    discarded: int = 0

    def summary(self) -> str:
        if not self.damage:
            return f"{self.path}: {self.volumes} volumes in {self.shards} shards are whole."
        lines = [f"{d.shard}: {f'volume {d.volume_id} ' if d.volume_id else ''}{d.problem}" for d in self.damage]
        if self.discarded:
            mend = (
                f"{self.discarded} shards were removed: run the store's `brgsa prepare` again, which writes them anew."
            )
        else:
            mend = "Add --discard to remove the damaged shards, then run the store's `brgsa prepare` again."
        return "\n".join([*lines, f"{self.path}: {len(self.damage)} damages. {mend}"])


def verify(path: str, discard: bool = False) -> VerifyResult:
    """Read a whole store.

    Args:
        discard: remove damaged shards, so that `prepare`, which writes what is missing, makes them anew.

    Raises:
        UserError: it is no store.
    """
    store = Store.open(path)
    expected: dict[int, dict[str, str]] = defaultdict(dict)
    index = store.index(["shard", "volume_id", "checksum", "patient_id", "scan_id", "split"])
    for row in index.to_pylist():
        expected[row["shard"]][row["volume_id"]] = row["checksum"]
    damage = [Damage("index.parquet", "", problem) for problem in _straddling(index)]
    with ray_session():
        damage += _read_all(store, expected)
    broken = sorted({d.shard for d in damage} - {"index.parquet"})
    if discard:
        for shard in broken:
            store.folder.delete(f"volumes/{shard}")
    return VerifyResult(store.path, len(index), len(store.meta.shards), damage, len(broken) if discard else 0)


def _read_all(store: Store, expected: dict[int, dict[str, str]]) -> list[Damage]:
    import ray

    set_data_context()
    jobs = [
        {"shard": name, "size": store.meta.sizes[name], "rows": json.dumps(expected[number])}
        for number, name in enumerate(store.meta.shards)
    ]
    dataset = ray.data.from_items(jobs, override_num_blocks=len(jobs))
    dataset = dataset.map(_verify_shard, fn_kwargs={"folder": store.folder})
    found: list[Damage] = []
    with progress(len(jobs), "verify: shards") as advance:
        for row in dataset.iter_rows():
            found += [Damage(*problem) for problem in json.loads(row["damage"])]
            advance()
    return sorted(found, key=lambda d: (d.shard, d.volume_id))


def _verify_shard(job: dict[str, Any], folder: Folder) -> dict[str, Any]:
    found = damage_of(folder, job["shard"], int(job["size"]), json.loads(job["rows"]))
    return {"damage": json.dumps([[job["shard"], volume_id, problem] for volume_id, problem in found])}


def damage_of(folder: Folder, shard: str, size: int, rows: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(volume id or "", problem) of a shard that should have so many bytes and these rows (volume id → checksum)."""
    name = f"volumes/{shard}"
    there = folder.size(name)
    if there is None:
        yield "", "is missing."
        return
    if there != size:
        yield "", f"has {there} bytes, not {size}."
    missing = dict(rows)
    try:
        with folder.open(name) as file:
            opened = pq.ParquetFile(file)
            for group in range(opened.metadata.num_row_groups):
                volume_id = f"in row group {group}"
                try:
                    row = opened.read_row_group(group).to_pylist()[0]
                    volume_id = row["volume_id"]
                    yield from ((volume_id, problem) for problem in _problems(row, missing.pop(volume_id, None)))
                except Exception as error:  # whatever damaged bytes make a decoder say
                    yield volume_id, f"cannot be read ({short_error(error)})."
    except (OSError, pa.ArrowException) as error:
        yield "", f"cannot be opened ({short_error(error)})."
        return
    for volume_id in missing:
        yield volume_id, "is in the index and not in the shard."


def _problems(row: dict[str, Any], expected: str | None) -> Iterator[str]:
    if expected is None:
        yield "is in the shard and not in the index."
    elif not checksum(row) == row["checksum"] == expected:
        yield "is not what its checksum says."
    elif list(decode(row["ct"]).shape) != row["shape"]:
        yield "has another shape than its row says."


def _straddling(index: pa.Table) -> Iterable[str]:
    """Patients in two splits and scans of two patients, counted: their ids are nobody's business here."""
    for owner, owned in (("patient_id", "split"), ("scan_id", "patient_id"), ("scan_id", "split")):
        pairs = set(zip(index[owner].to_pylist(), index[owned].to_pylist(), strict=True))
        twice = len(pairs) - len({pair[0] for pair in pairs})
        if twice:
            yield f"{twice} times a {owner} has more than one {owned}."
