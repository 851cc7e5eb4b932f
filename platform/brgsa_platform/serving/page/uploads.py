"""What a browser sends, as something that a reader of volumes takes. A file's own name is never asked for."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.volumes.formats.detached import data_files
from brgsa_platform.serving.page.stated_size import stated_bytes

MOST_FILES = 20_000  # of a zip: slices of several series
UNPACKED_TIMES = 4  # the limit of an upload: what may be packed in it; CT shrinks to a half at most
CHUNK = 1 << 20
HEAD = 1024

# How a file begins → the suffix by which the readers know it.
STARTS = (
    (b"NRRD", ".nrrd"),
    (b"ObjectType", ".mha"),
    (b"NDims", ".mha"),
    (b"\x5c\x01\x00\x00", ".nii"),
    (b"\x00\x00\x01\x5c", ".nii"),
    (b"\x1c\x02\x00\x00", ".nii"),
    (b"\x00\x00\x02\x1c", ".nii"),
)
ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
ENCRYPTED, PATCHED = 0x41, 0x20  # bits of a zip's member
# What Python raises for bytes of a zip that were changed; a RuntimeError for a version of the format that is not known.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


async def receive(chunks: AsyncIterator[bytes], file: Path, limit: int) -> None:
    """Write an upload into a file.

    Args:
        limit: bytes at most.

    Raises:
        UserError: it is larger ("upload-too-large").
    """
    size = 0
    with file.open("wb") as target:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            target.write(chunk)


def too_large(limit: int) -> UserError:
    """The refusal of an upload for its size."""
    return UserError(
        f"The upload is larger than {limit / 1e6:.0f} MB: send one series, or start brgsa serve with a larger --max-mb.",
        code="upload-too-large",
        field="--max-mb",
        value=limit,
    )


def as_scan(file: Path, limit: int) -> Path:
    """The file under a name that tells its kind, or the folder with a zip's files.

    Raises:
        UserError: it is no image that is known ("upload-not-image"), an image whose voxels lie in another file
            ("upload-detached"), or packed and damaged ("upload-damaged"), too large when unpacked or by what its headers state
            ("upload-too-large"), encrypted ("upload-encrypted") or compressed in a way that is not read here
            ("upload-compression").
        OSError: the disk does not take it.
    """
    scan = _named(file, limit)
    if stated_bytes(scan) > UNPACKED_TIMES * limit:
        raise too_large(UNPACKED_TIMES * limit)
    return scan


def _named(file: Path, limit: int) -> Path:
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if head.startswith(ZIP):
        return _unpacked(file, limit)
    if head.startswith(GZIP):
        return _inflated(file, limit)
    suffix = (
        ".dcm" if head[128:132] == b"DICM" else next((kind for start, kind in STARTS if head.startswith(start)), "")
    )
    if not suffix:
        raise UserError(
            "The upload is no CT: send a NIfTI, NRRD or MetaImage file, or a zip of a DICOM series.",
            code="upload-not-image",
        )
    scan = file.rename(file.with_name(f"scan{suffix}"))
    if data_files(scan):  # a path in a header may lead to any file of this machine
        raise UserError(
            "The upload is a header whose voxels lie in another file: send one file that holds both (.nrrd, .mha).",
            code="upload-detached",
        )
    return scan


def _inflated(file: Path, limit: int) -> Path:
    """A NIfTI file out of gzip. The reader would do that too, but in memory and to whatever size."""
    from isal import igzip, isal_zlib

    scan, left = file.with_name("scan.nii"), UNPACKED_TIMES * limit
    damage: Any = (EOFError, gzip.BadGzipFile, isal_zlib.error)
    try:
        source: Any = igzip.open(file, "rb")  # type: ignore[no-untyped-call]
        with source, scan.open("wb") as target:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise too_large(UNPACKED_TIMES * limit)
                target.write(chunk)
    except damage as error:
        raise UserError("The file is cut short or damaged: send it again.", code="upload-damaged") from error
    return scan


def _unpacked(file: Path, limit: int) -> Path:
    """A zip's files in a folder, numbered: what they are called there decides nothing about where they are written."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(members, limit)
            if members and all(member.filename.endswith(".npy") for member in members):
                return file.rename(file.with_name("scan.npz"))
            folder = file.with_name("series")
            folder.mkdir()
            for number, member in enumerate(members):
                with archive.open(member) as source, (folder / f"{number:05d}.dcm").open("wb") as target:
                    while chunk := source.read(CHUNK):  # never more than the size that it states
                        target.write(chunk)
    except DAMAGE as error:
        raise UserError("The zip is damaged: send it again.", code="upload-damaged") from error
    return folder


def _check(members: Sequence[zipfile.ZipInfo], limit: int) -> None:
    """Refuse what cannot be unpacked, or only into too much."""
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > UNPACKED_TIMES * limit:
        raise too_large(UNPACKED_TIMES * limit)
    if any(member.flag_bits & ENCRYPTED for member in members):
        raise UserError("The zip is encrypted: send one without a password.", code="upload-encrypted")
    methods = {member.compress_type for member in members}
    if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or any(m.flag_bits & PATCHED for m in members):
        raise UserError(
            "The zip is compressed in a way that is not read here: make it with the usual one, deflate.",
            code="upload-compression",
        )
    if any(member.header_offset < 0 for member in members):
        raise zipfile.BadZipFile("a member lies before the file")
