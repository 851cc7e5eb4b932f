"""`brgsa store verify`: read every row of a store and compare it with its checksum and with the index, with Ray Data."""

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
    """Something that is not as it was written.

    Attributes:
        shard: file name of the shard, or "index.parquet".
        volume_id: of the damaged row; empty where the whole file is meant.
        problem: the rest of a sentence that begins with the shard and the volume.
    """

    shard: str
    volume_id: str
    problem: str


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found.

    Attributes:
        path: of the store.
        volumes, shards: how many the store should have.
        damage: sorted by shard and volume.
        discarded: number of shards that were removed.
    """

    path: str
    volumes: int
    shards: int
    damage: list[Damage]
    discarded: int = 0

    def summary(self) -> str:
        """A line for each damage, and one that says what to do."""
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
    """Read a whole store and compare it with its checksums.

    Args:
        path: path or URL of the store.
        discard: remove damaged shards; `prepare`, run again, writes what is missing.

    Raises:
        UserError: it is no store, or its index is damaged; see `Store.open` and `Store.index`.
    """
    store = Store.open(path)
    expected: dict[int, dict[str, str]] = defaultdict(dict)
    index = store.index(["shard", "volume_id", "checksum", "patient_id", "scan_id", "split"])
    for row in index.to_pylist():
        expected[row["shard"]][row["volume_id"]] = row["checksum"]
    damage = [Damage("index.parquet", "", problem) for problem in _conflicting_owners(index)]
    with ray_session():
        damage += _read_all(store, expected)
    broken = sorted({d.shard for d in damage} - {"index.parquet"})
    if discard:
        for shard in broken:
            store.folder.delete(f"volumes/{shard}")
    return VerifyResult(store.path, len(index), len(store.meta.shards), damage, len(broken) if discard else 0)


def _read_all(store: Store, expected: dict[int, dict[str, str]]) -> list[Damage]:
    """The damage of all shards.

    Args:
        expected: shard number → volume id → checksum.
    """
    import ray

    set_data_context()
    tasks = [
        {"shard": name, "size": store.meta.sizes[name], "rows": json.dumps(expected[number])}
        for number, name in enumerate(store.meta.shards)
    ]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    dataset = dataset.map(_verify_shard, fn_kwargs={"folder": store.folder})
    damage: list[Damage] = []
    with progress(len(tasks), "verify: shards") as advance:
        for row in dataset.iter_rows():
            damage += [Damage(*problem) for problem in json.loads(row["damage"])]
            advance()
    return sorted(damage, key=lambda d: (d.shard, d.volume_id))


def _verify_shard(task: dict[str, Any], folder: Folder) -> dict[str, Any]:
    problems = _shard_problems(folder, task["shard"], int(task["size"]), json.loads(task["rows"]))
    return {"damage": json.dumps([[task["shard"], volume_id, problem] for volume_id, problem in problems])}


def _shard_problems(folder: Folder, shard: str, size: int, rows: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(volume id or empty, problem) for each damage of a shard.

    Args:
        size: bytes that the shard had when its batch was committed.
        rows: volume id → checksum, as the index has them.
    """
    name = f"volumes/{shard}"
    bytes_now = folder.size(name)
    if bytes_now is None:
        yield "", "is missing."
        return
    if bytes_now != size:
        yield "", f"has {bytes_now} bytes, not {size}."
    missing = dict(rows)
    try:
        with folder.open(name) as file:
            opened = pq.ParquetFile(file)
            for group in range(opened.metadata.num_row_groups):
                volume_id = f"in row group {group}"
                try:
                    row = opened.read_row_group(group).to_pylist()[0]
                    volume_id = row["volume_id"]
                    yield from ((volume_id, problem) for problem in _row_problems(row, missing.pop(volume_id, None)))
                except Exception as error:  # damaged bytes make a decoder raise almost anything
                    yield volume_id, f"cannot be read ({short_error(error)})."
    except (OSError, pa.ArrowException) as error:
        yield "", f"cannot be opened ({short_error(error)})."
        return
    for volume_id in missing:
        yield volume_id, "is in the index and not in the shard."


def _row_problems(row: dict[str, Any], expected: str | None) -> Iterator[str]:
    """What is wrong with a shard's row, given the index's checksum of it (None: the index has no such row)."""
    if expected is None:
        yield "is in the shard and not in the index."
    elif not checksum(row) == row["checksum"] == expected:
        yield "is not what its checksum says."
    elif list(decode(row["ct"]).shape) != row["shape"]:
        yield "has another shape than its row says."


def _conflicting_owners(index: pa.Table) -> Iterable[str]:
    """Problems of the index: patients in two splits, scans of two patients. They are counted, to print no patient's id."""
    for owner, owned in (("patient_id", "split"), ("scan_id", "patient_id"), ("scan_id", "split")):
        pairs = set(zip(index[owner].to_pylist(), index[owned].to_pylist(), strict=True))
        repeated = len(pairs) - len({pair[0] for pair in pairs})
        if repeated:
            yield f"{repeated} times a {owner} has more than one {owned}."
