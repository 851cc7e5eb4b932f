"""A folder on this machine or in an object store, by path or URL; a store of volumes is one.

All goes through pyarrow's filesystems, so that `s3://`, `gs://` and `hdfs://` work where a path does. S3's credentials,
region and endpoint come from the usual `AWS_…` variables, on every node.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from brgsa import files
from brgsa.errors import UserError
from brgsa_platform.runtime import waiting

if TYPE_CHECKING:
    from typing import Self

PATIENCE = 60.0  # seconds that a remote filesystem may be away before a piece of work fails
# Words in the errors of object stores that are away or busy; any other error is final.
_AWAY = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING|curlCode|response code 50"
)
_COPY = 4 * 2**20  # bytes at a time

T = TypeVar("T")


class Folder:
    """A folder, and the files in it by their names from there ("volumes/part-00000.parquet").

    Where it is remote, each call waits up to `PATIENCE` seconds for a store that is away. Calls raise OSError
    (FileNotFoundError, PermissionError) as a local file system does.

    Attributes:
        url: the absolute path or URL, as messages name it and as another node opens it.
        remote: whether it lies in an object store.

    Raises:
        UserError: the URL is of a kind that cannot be read here ("bad-url").
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.remote = "://" in text and not text.startswith("file://")
        self.url = text.rstrip("/") if self.remote else str(Path(text.removeprefix("file://")).absolute())
        self._fs, self._root = _filesystem(self.url) if self.remote else (fs.LocalFileSystem(), self.url)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.url,)  # filesystems hold connections: another process opens its own

    def __str__(self) -> str:
        return self.url

    def at(self, name: str) -> str:
        """The URL or path of a file in it."""
        return f"{self.url}/{name}"

    def make(self) -> None:
        """Create the folder. An object store has no folders, and its bucket must be there already."""
        if not self.remote:
            Path(self.url).mkdir(parents=True, exist_ok=True)

    def exists(self, name: str = "") -> bool:
        """Whether a file is there, or the folder itself."""
        return bool(self._info(name).type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        """The names of the files and folders in it, sorted; none where it is not there."""
        chosen = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(f.base_name for f in self._patiently(lambda: self._fs.get_file_info(chosen)))

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        info = self._info(name)
        return int(info.size) if info.type == fs.FileType.File else None

    def written_at(self, name: str) -> float | None:
        """When a file was last written, in seconds since 1970 by its file system's own clock; None where there is none."""
        info = self._info(name)
        return float(info.mtime_ns) / 1e9 if info.type == fs.FileType.File else None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Name from the subfolder `below` → bytes, of every file under it, hidden ones too, sorted; by one listing."""
        root = self._path(below)
        chosen = fs.FileSelector(root, recursive=True, allow_not_found=True)
        infos = self._patiently(lambda: self._fs.get_file_info(chosen))
        return {
            info.path.removeprefix(root).lstrip("/"): int(info.size)
            for info in sorted(infos, key=lambda info: str(info.path))
            if info.type == fs.FileType.File
        }

    def open(self, name: str) -> pa.NativeFile:
        """A file, opened for reading from any position; a local file is mapped into memory, so that reading copies nothing."""
        path = self._path(name)
        if not self.remote:
            return pa.memory_map(path)
        return self._patiently(lambda: self._fs.open_input_file(path))

    def read(self, name: str) -> bytes:
        """A file's bytes."""

        def whole() -> bytes:
            with self._fs.open_input_stream(self._path(name)) as file:
                return bytes(file.read())

        return self._patiently(whole)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            self._patiently(lambda: self._fs.delete_file(self._path(name)))

    def remove(self, below: str) -> None:
        """Remove a subfolder and all in it, if it is there."""
        if self.exists(below):
            self._patiently(lambda: self._fs.delete_dir(self._path(below)))

    @contextmanager
    def written_aside(self, name: str) -> Iterator[Path]:
        """A local path for the caller to write to; at the end it becomes the file `name`, whole or not at all.

        Local: see `files.written_aside`. Remote: a temporary file is sent under a hidden name, measured, and only then moved
        to its place, so that a transfer that breaks off leaves nothing that counts.
        """
        if not self.remote:
            target = Path(self._path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.written_aside(target) as aside:
                yield aside
            return
        with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
            local = Path(scratch) / "file"
            yield local
            hidden = self._hidden(name)
            self._patiently(lambda: self._send(local, hidden, name))

    def write(self, name: str, text: str) -> None:
        """Write a small text file aside and rename it."""
        with self.written_aside(name) as aside:
            aside.write_text(text, encoding="utf-8")

    def sweep(self, below: str = "") -> None:
        """Remove the hidden files that killed writers left under a subfolder."""
        for name in self.sizes(below):
            if name.rpartition("/")[2].startswith("."):
                self.delete(f"{below}/{name}" if below else name)

    def _send(self, local: Path, hidden: str, name: str) -> None:
        with local.open("rb") as source, self._fs.open_output_stream(self._path(hidden)) as sink:
            shutil.copyfileobj(source, sink, _COPY)
        there, whole = self.size(hidden), local.stat().st_size
        if there != whole:
            raise OSError(f"{there} of {whole} bytes arrived at {self.at(name)} (NETWORK_CONNECTION)")
        self._fs.move(self._path(hidden), self._path(name))

    def _patiently(self, work: Callable[[], T]) -> T:
        return patiently(work) if self.remote else work()

    def _info(self, name: str) -> Any:
        return self._patiently(lambda: self._fs.get_file_info(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @staticmethod
    def _hidden(name: str) -> str:
        folder, slash, file = name.rpartition("/")
        return f"{folder}{slash}.{file}.{uuid.uuid4().hex[:12]}"


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file as a local path: its own, or that of a remote file's copy, which is removed afterwards.

    Raises:
        UserError, OSError: see `Folder`.
    """
    if "://" not in path:
        yield Path(path)
        return
    url, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
        copy = Path(scratch) / name
        copy.write_bytes(Folder(url).read(name))
        yield copy


def patiently(work: Callable[[], T]) -> T:
    """Do a piece of work that may be repeated, again while the object store is away, for at most `PATIENCE` seconds.

    Raises:
        OSError: it stays away, or its answer is final.
    """
    return waiting.patiently(work, is_away, PATIENCE)


def is_away(error: Exception) -> bool:
    """Whether an error says that an object store is away or busy; any other answer is final."""
    return isinstance(error, OSError) and _AWAY.search(str(error)) is not None


def short_error(error: BaseException) -> str:
    """The reason of a failed read or write in one line, without what libraries put around it."""
    text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    detail = re.search(r"Detail: (?:\[\w+ error \d+\] |\[errno \d+\] )?(.+)", text)
    return (detail[1] if detail else text.partition("; Details")[0]).strip().rstrip(".")


def error_line(error: BaseException) -> str:
    """An exception's type and the first line of its text; for a failed Ray task, those of the error that it raised."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, OSError):
        return short_error(cause)
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__


def _filesystem(url: str) -> tuple[fs.FileSystem, str]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        if url.startswith("s3://") and endpoint:  # pyarrow does not look at these
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            return fs.S3FileSystem(endpoint_override=endpoint, region=region), url.removeprefix("s3://")
        filesystem, path = fs.FileSystem.from_uri(url)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        message = f"{url} cannot be opened ({short_error(error)}): correct the URL or its credentials."
        raise UserError(message, code="bad-url", value=url) from error
    return filesystem, path
