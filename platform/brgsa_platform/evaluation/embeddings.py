"""A split's embeddings, part by part: encoded here or by several workers, gone on with after a kill, kept as a file, read back.

A part is a file, written aside and renamed. It holds the same volumes in the same batches whoever encodes it, so that one and
several workers give the same figures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from brgsa import checkpoint as checkpoint_files
from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa.model import BrgSA, Embeddings
from brgsa_platform.loading.batches import BatchSource, SplitIndex, evaluation_batches
from brgsa_platform.loading.loaders import Batch, Batches
from brgsa_platform.runtime.session import nodes_for
from brgsa_platform.training.encoding import encode_split

PART = 256  # volumes of a part
PARTS = ".encoding-"  # folders of parts
IDENTITY = b"brgsa"  # key of a file's metadata

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Encoding:
    """How the N volumes of a split become embeddings.

    Attributes:
        checkpoint: folder of the checkpoint, which every worker can read.
        split: its name.
        source: the volumes.
        batch_size: volumes encoded at a time.
        folder: where the parts are written, by all workers; one folder for one checkpoint, store and way of encoding.
        device: of the model; None for a worker's GPU, or its CPU.
        part: volumes of a part.
    """

    checkpoint: Path
    split: str
    source: BatchSource = field(repr=False)
    batch_size: int
    folder: Path
    device: str | None = None
    part: int = field(default_factory=lambda: PART)

    @property
    def parts(self) -> list[Path]:
        """The files of all parts, in order."""
        count = -(-len(self.source.index) // self.part)
        return [self.folder / f"{self.split}-{number:05d}.parquet" for number in range(count)]

    def encode(self, model: BrgSA, workers: int, advance: Advance) -> Embeddings:
        """The embeddings of all volumes, float32 (N, D) on the CPU; parts that are there already are kept.

        Args:
            model: for one worker, which is this process.
            workers: several are processes of Ray's; a Ray session runs.
            advance: called with the number of volumes done.

        Raises:
            UserError: a shard is missing or damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number, path in enumerate(self.parts) if not path.is_file()]
        advance(len(self.source.index) - sum(len(self._rows(number)) for number in missing))
        if workers == 1:
            for number in missing:
                self.encode_part(number, model, evaluation_batches, advance)
        elif missing:
            self._encode_by_workers(missing, workers, advance)
        read = [read_embeddings(path) for path in self.parts]
        return Embeddings.concatenate([part.volumes for part in read])

    def encode_part(
        self, number: int, model: BrgSA, load: Callable[..., Batches], advance: Advance = lambda volumes: None
    ) -> None:
        """Encode one part and write its file.

        Args:
            load: gives the batches of a `BatchSource`, as `evaluation_batches` does.
        """
        index = self.source.index.take(self._rows(number))
        batches = load(replace(self.source, index=index), batch_size=self.batch_size)
        encoded = encode_split(model, index, batches, advance=advance)
        write_embeddings(self.parts[number], EmbeddedSplit(index.volume_ids, encoded.embeddings))

    def _rows(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(number * self.part, min((number + 1) * self.part, len(self.source.index)))

    def _encode_by_workers(self, missing: list[int], workers: int, advance: Advance) -> None:
        import ray

        gpus = 0.0 if self.device == "cpu" else min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
        done = ray.data.from_items(
            [{"part": number} for number in missing], override_num_blocks=len(missing)
        ).map_batches(
            _encode_parts,
            fn_kwargs={"encoding": self},
            batch_size=1,
            num_cpus=1,
            num_gpus=gpus,
            concurrency=min(workers, len(missing)),
            label_selector=nodes_for("training") or None,
        )
        for batch in done.iter_batches(batch_size=1, batch_format="numpy"):
            if batch["refusal"][0]:
                raise UserError(**json.loads(str(batch["refusal"][0])))
            advance(len(self._rows(int(batch["part"][0]))))


def _encode_parts(batch: dict[str, Any], encoding: Encoding) -> dict[str, Any]:
    """A task's work: encode the parts of these numbers, and tell why not where it cannot."""
    refusals = []
    for number in batch["part"]:
        try:
            encoding.encode_part(int(number), _loaded(encoding.checkpoint, encoding.device), _read_here)
            refusals.append("")
        except UserError as error:  # as a value it crosses processes unharmed
            value = error.value if isinstance(error.value, str | int | float | None) else None
            told = {"message": str(error), "code": error.code, "field": error.field, "value": value}
            refusals.append(json.dumps(told))
    return {"part": batch["part"], "refusal": np.array(refusals)}


@functools.lru_cache(maxsize=1)
def _loaded(checkpoint: Path, device: str | None) -> BrgSA:
    """The model, loaded once in a worker's process."""
    return checkpoint_files.load(checkpoint).model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _read_here(source: BatchSource, *, batch_size: int) -> Batches:
    """The batches of `evaluation_batches`, read in this process, which has one CPU and waits for no other."""
    reader, total = source.reader(), len(source.index)
    for start in range(0, total, batch_size):
        rows = np.arange(start, min(start + batch_size, total))
        yield Batch(rows, [reader.read(rows, 0)])


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embeddings of a split, as a file holds them.

    Attributes:
        volume_ids: N of them.
        volumes: (N, D).
        texts: (N, D) of each volume's text; None where they are not known. A volume without a text has NaN.
        identity: what they are of: checkpoint, data, split, style.
    """

    volume_ids: list[str]
    volumes: Embeddings
    texts: Embeddings | None = None
    identity: dict[str, Any] = field(default_factory=dict)


def write_embeddings(path: Path, split: EmbeddedSplit) -> None:
    """Write v, v', t and t' as Parquet, a row a volume, columns `volume_id`, `v`, `v_bridged`, `t`, `t_bridged`."""
    columns: dict[str, Any] = {"volume_id": split.volume_ids}
    for name, of in (("v", split.volumes), ("t", split.texts)):
        if of is not None:
            columns[name] = _vectors(of.plain)
            if of.bridged is not None:
                columns[f"{name}_bridged"] = _vectors(of.bridged)
    table = pa.table(columns).replace_schema_metadata({IDENTITY: json.dumps(split.identity)})
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_embeddings(path: Path) -> EmbeddedSplit:
    """What `write_embeddings` wrote.

    Raises:
        UserError: unreadable-embeddings.
    """
    try:
        table = pq.read_table(path)
        identity = json.loads((table.schema.metadata or {}).get(IDENTITY, b"{}"))
        volumes, texts = (_embeddings(table, name) for name in ("v", "t"))
        ids = table["volume_id"].to_pylist()
        if volumes is None:
            raise ValueError("it has no column v")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"The embeddings {path} cannot be read ({str(error).splitlines()[0]}): write them again with --save-embeddings.",
            code="unreadable-embeddings",
            field=str(path),
        ) from error
    return EmbeddedSplit(ids, volumes, texts, identity)


def embeddings_file(folder: Path, split: str) -> Path:
    """Where the embeddings of a split are kept in a folder."""
    return folder / f"embeddings-{split}.parquet"


def read_kept(folder: Path, split: str, identity: dict[str, Any], index: SplitIndex) -> EmbeddedSplit:
    """The embeddings of this checkpoint and these volumes that an earlier evaluation kept.

    Raises:
        UserError: unreadable-embeddings, or embeddings-differ where they are of other weights, data or volumes (`value` names
            what differs).
    """
    path = embeddings_file(folder, split)
    kept = read_embeddings(path)
    differing = [key for key in identity if kept.identity.get(key) != identity[key]]
    if not differing and kept.volume_ids != index.volume_ids:
        differing = ["volumes"]
    if differing:
        raise UserError(
            f"The embeddings {path} are of another {' and '.join(differing)}: write them again with --save-embeddings.",
            code="embeddings-differ",
            field=str(path),
            value=differing[0],
        )
    return kept


def parts_folder(folder: Path, *made_of: object) -> Path:
    """The hidden folder of an evaluation's parts: another checkpoint, store, split or way of encoding has another."""
    return folder / f"{PARTS}{hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]}"


def remove_parts(folder: Path) -> None:
    """Remove an evaluation's parts, once what was made of them is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _vectors(rows: torch.Tensor) -> pa.Array:
    """Float32 (N, D) as a column of vectors; a row with NaN is null."""
    values = rows.numpy().astype(np.float32)
    made = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    absent = np.isnan(values).any(axis=1)
    return made if not absent.any() else pa.compute.if_else(pa.array(absent), pa.scalar(None, made.type), made)


def _embeddings(table: pa.Table, name: str) -> Embeddings | None:
    """The embeddings in the column of this name and in its bridged twin; null rows are NaN."""
    if name not in table.column_names:
        return None

    def rows(column: str) -> torch.Tensor:
        vectors = table[column].combine_chunks()
        width = vectors.type.list_size
        values = np.full((len(vectors), width), np.nan, np.float32)
        present = vectors.is_valid().to_numpy(zero_copy_only=False)
        values[present] = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        return torch.from_numpy(values)

    bridged = f"{name}_bridged"
    return Embeddings(rows(name), rows(bridged) if bridged in table.column_names else None)
