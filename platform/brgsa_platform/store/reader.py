"""One encoded volume out of a shard, on this machine without a copy, from an object store with patience."""

from __future__ import annotations

import functools
import os

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes.codec import span
from brgsa_platform.runtime.storage import Folder, patiently, short_error

PAGE_HEADER = 512  # bytes that are enough for a Parquet page's header; measured 35


def encoded_volume(shard: str, row_group: int) -> pa.Buffer:
    """The `ct` cell of a shard's row group, in its stored form.

    Args:
        shard: path or URL.

    Raises:
        UserError: the shard is missing or damaged ("shard-damaged"); the message has the commands that tell and mend.
    """
    try:
        if "://" in shard:
            return patiently(lambda: _cell(_remote(shard), row_group))
        return _mapped_cell(shard, row_group)
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        _remote.cache_clear()  # the object may have been replaced
        url = shard.rpartition("/volumes/")[0]
        raise UserError(
            f"Shard {shard} cannot be read ({short_error(error)}): `brgsa store verify {url}` tells what is damaged, and "
            "running its `brgsa prepare` again writes that anew.",
            code="shard-damaged",
            field=shard,
        ) from error


def _cell(file: pq.ParquetFile, row_group: int) -> pa.Buffer:
    return file.read_row_group(row_group, columns=["ct"])["ct"][0].as_buffer()


def _mapped_cell(shard: str, row_group: int) -> pa.Buffer:
    """Its page is not compressed again and it is the only value there: what is mapped of the file needs no copy, which would
    cost a fifth as much as decoding. Wherever it does not lie like that, pyarrow reads it.
    """
    there = os.stat(shard)
    metadata, ct, mapped = _mapped(shard, there.st_mtime_ns, there.st_size)
    chunk = metadata.row_group(row_group).column(ct)
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    page = mapped.slice(begin, chunk.total_compressed_size)
    found = span(bytes(page[:PAGE_HEADER]))
    if chunk.compression == "UNCOMPRESSED" and chunk.num_values == 1 and found is not None:
        return page.slice(*found)
    return _cell(pq.ParquetFile(shard, memory_map=True), row_group)


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
    url, _, name = shard.rpartition("/")
    return pq.ParquetFile(Folder(url).open(name))
