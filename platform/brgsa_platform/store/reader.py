"""One volume out of a shard: on this machine without a copy, from an object store with patience."""

from __future__ import annotations

import functools
import os

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes.codec import decode, find_frame
from brgsa_platform.runtime.storage import Folder, patiently, short_error

PAGE_HEADER = 512  # bytes that are enough for a Parquet page's header; measured 35


def decoded_volume(shard: str, row_group: int, out: npt.NDArray[np.int16] | None = None) -> npt.NDArray[np.int16]:
    """A shard's volume, int16 HU (x, y, z).

    Args:
        shard: path or URL.
        out: an array to decode into, where it has the right shape and type.

    Raises:
        UserError: the shard is missing or damaged ("shard-damaged").
    """
    stored = encoded_volume(shard, row_group)
    try:
        return decode(stored, out)
    except (RuntimeError, ValueError) as error:  # what Blosc2 says of a damaged frame
        raise _damaged(shard, error) from error


def encoded_volume(shard: str, row_group: int) -> pa.Buffer:
    """A shard's volume in its stored form, the value of the column `ct`.

    Args:
        shard: path or URL.

    Raises:
        UserError: the shard is missing or damaged ("shard-damaged"); the message has the commands that tell and mend.
    """
    try:
        if "://" in shard:
            return patiently(lambda: _value(_remote(shard), row_group))
        return _mapped_value(shard, row_group)
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        _remote.cache_clear()  # the object may have been replaced
        raise _damaged(shard, error) from error


def _damaged(shard: str, error: Exception) -> UserError:
    store = shard.rpartition("/volumes/")[0]
    return UserError(
        f"Shard {shard} cannot be read ({short_error(error)}): `brgsa store verify {store}` tells what is damaged, and "
        "running its `brgsa prepare` again writes that anew.",
        code="shard-damaged",
        field=shard,
    )


def _value(file: pq.ParquetFile, row_group: int) -> pa.Buffer:
    """The value as pyarrow gives it: a copy."""
    return file.read_row_group(row_group, columns=["ct"])["ct"][0].as_buffer()


def _mapped_value(shard: str, row_group: int) -> pa.Buffer:
    """The value as a part of the mapped file, without the copy, which costs a quarter of decoding.

    That works where `prepare` wrote the shard: its page is not compressed again and holds this value alone. Any other page
    is pyarrow's to read.
    """
    status = os.stat(shard)
    metadata, ct, file = _mapped(shard, status.st_mtime_ns, status.st_size)
    chunk = metadata.row_group(row_group).column(ct)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    page = file.slice(start, chunk.total_compressed_size)
    frame = find_frame(bytes(page[:PAGE_HEADER]))
    if chunk.compression == "UNCOMPRESSED" and chunk.num_values == 1 and frame is not None:
        return page.slice(*frame)
    return _value(pq.ParquetFile(shard, memory_map=True), row_group)


# A shuffle buffer's volumes come from some hundred shards at a time.
@functools.lru_cache(maxsize=256)
def _mapped(shard: str, modified: int, size: int) -> tuple[pq.FileMetaData, int, pa.Buffer]:
    """A shard's metadata, the number of its column `ct`, and the file as a buffer.

    Args:
        modified, size: of the file; one that `prepare` has written anew is mapped anew.
    """
    metadata = pq.read_metadata(shard)
    columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return metadata, columns.index("ct"), pa.memory_map(shard).read_buffer()


@functools.lru_cache(maxsize=256)
def _remote(shard: str) -> pq.ParquetFile:
    """A shard in an object store, its metadata read."""
    url, _, name = shard.rpartition("/")
    return pq.ParquetFile(Folder(url).open(name))
