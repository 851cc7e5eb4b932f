"""The stored form of a volume: a Blosc2 frame (bit shuffle and LZ4), which knows its shape and type.

Any Blosc2 reads it: `blosc2.ndarray_from_cframe(stored)[:]`. Measured on one core with a real chest CT of 256×256×128
int16 (16.8 MB): 6.1 MB, 11 ms to encode, 6.3 ms to decode; with Zstd 5.5 MB, 82 ms and 8.7 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"\x9e\xa8b2frame\x00"  # how a Blosc2 frame begins; bytes 16 to 24 are its length, big-endian


def encode(array: npt.NDArray[np.int16]) -> bytes:
    """A volume of any shape as one Blosc2 frame. The same array gives the same bytes."""
    import blosc2

    array = np.ascontiguousarray(array)
    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4,
        clevel=5,
        typesize=array.itemsize,
        filters=[blosc2.Filter.BITSHUFFLE],
        filters_meta=[0],
        nthreads=1,
    )
    # One chunk: the frame's overhead is small, and a volume is always read whole.
    return bytes(blosc2.asarray(array, chunks=array.shape, cparams=parameters).to_cframe())


def decode(stored: Any, out: npt.NDArray[np.int16] | None = None) -> npt.NDArray[np.int16]:
    """The array that `encode` was given, writable and C-ordered.

    One thread decodes: data workers run side by side.

    Args:
        stored: bytes, or any buffer of them.
        out: an array to decode into, where it has the right shape and type; fresh memory costs a sixth of decoding.

    Raises:
        RuntimeError: the bytes are no whole frame.
    """
    import blosc2

    frame = blosc2.ndarray_from_cframe(stored)
    frame.schunk.dparams = blosc2.DParams(nthreads=1)
    array: npt.NDArray[np.int16]
    whole_rows = frame.blocks[1:] == frame.shape[1:] and frame.shape[0] % frame.blocks[0] == 0
    if frame.schunk.nchunks == 1 and whole_rows:
        # Its blocks lie one after the other as in the array: decompressed into place, 0.6 of 6.3 ms less than `[:]`.
        fits = out is not None and (out.shape, out.dtype) == (frame.shape, frame.dtype) and out.flags.c_contiguous
        array = out if out is not None and fits else np.empty(frame.shape, frame.dtype)
        frame.schunk.decompress_chunk(0, dst=array)
    else:
        array = frame[:]
    return array


def find_frame(head: bytes) -> tuple[int, int] | None:
    """Where a stored volume begins in data that begin with `head`, and its length in bytes; None where it begins later."""
    start = head.find(MAGIC)
    length = head[start + 16 : start + 24]
    return None if start < 0 or len(length) < 8 else (start, int.from_bytes(length, "big"))
