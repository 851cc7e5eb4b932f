"""The files that go with a job: the working folder without its data, and the code that runs here.

Our three packages lie in the archive as they do in the repository, under `brgsa`, `tune_spaces` and `platform/`, wherever they
were imported from: a job runs the code of its sender. `platform/` gets no `__init__.py`, or Python would take it for the
standard library's module.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brgsa.errors import UserError
from brgsa_platform.runtime.console import byte_size

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SOURCE_ROOT = "platform"
PACKAGES = {"brgsa": "brgsa", "tune_spaces": "tune_spaces", "brgsa_platform": f"{SOURCE_ROOT}/brgsa_platform"}
LIMIT = 100 * 2**20  # bytes; the archive lies in the memory of the cluster's head, and Ray itself refuses 500 MiB
LARGEST = 5  # number of folders that a refusal names
# What does not go with a job, as .gitignore would write it.
CACHES = (".git/", ".venv/", "venv/", "node_modules/", "__pycache__/", ".*_cache/", ".hypothesis/", "*.egg-info/")
OUTPUTS = ("/data/", "/store/", "/stores/", "/runs/", "/searches/", "/demo-out/", "mlruns*/", "mlflow.db*")
PATIENTS = ("*.nii", "*.nii.gz", "*.nrrd", "*.mha", "*.dcm", "*.npz", "*.parquet", "*.safetensors", "*.pt")
SECRETS = (".env*", ".netrc", ".ssh/", ".aws/", ".kube/", ".ray/", ".config/", "*.pem", "*.key")
EXCLUDES = [*CACHES, *OUTPUTS, *PATIENTS, *SECRETS]
IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class JobFiles:
    """The files that go with a job.

    Attributes:
        folder: the working folder.
        files: name in the archive → file on this machine.
        size: bytes, before compression.
    """

    folder: Path
    files: dict[str, Path]
    size: int

    def write_archive(self, archive: Path) -> None:
        """Write a zip file, with the same bytes for the same files: Ray knows an archive by its checksum and sends it once."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, path in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name)  # its date is always 1980
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0o777 | 0o600) << 16
                packed.writestr(entry, path.read_bytes())


def collect_files(folder: Path) -> JobFiles:
    """The working folder's files without data, runs, caches and secrets, and our packages in place of what has their names.

    Raises:
        UserError: it is not a folder ("not-a-folder"), it is too large ("too-large", with its largest folders), or a
            folder in it cannot be read ("unreadable-folder").
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(
            f"--working-dir {folder} is not a folder.", code="not-a-folder", field="--working-dir", value=str(folder)
        )
    files: dict[str, Path] = {}
    sizes: Counter[str] = Counter()
    for path in _walk(folder, [(folder, _spec(EXCLUDES))]):
        name = path.relative_to(folder).as_posix()
        files[name] = path
        sizes[name.partition("/")[0] if "/" in name else "."] += path.stat().st_size
    total = sum(sizes.values())
    if total > LIMIT:
        largest = ", ".join(f"{name} {byte_size(size)}" for name, size in sizes.most_common(LARGEST))
        raise UserError(
            f"{folder} holds {byte_size(total)} for the job, more than {byte_size(LIMIT)}; largest: {largest}. Name what "
            "the job does not need in .gitignore or .rayignore, or give a smaller --working-dir.",
            code="too-large",
            field="--working-dir",
            value=tuple(sizes.most_common(LARGEST)),
        )
    for package, place in PACKAGES.items():
        # A folder of this name in the working folder is this package, or would hide it.
        files = {name: path for name, path in files.items() if not name.startswith(f"{place}/")}
        files |= _package_files(package, place)
    return JobFiles(folder, files, sum(path.stat().st_size for path in files.values()))


def _package_files(package: str, place: str) -> dict[str, Path]:
    """Name in the archive → file, for all files of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    origin = Path(next(iter(spec.submodule_search_locations)))
    paths = _walk(origin, [(origin, _spec(["__pycache__/"]))])
    return {f"{place}/{path.relative_to(origin).as_posix()}": path for path in paths}


def _walk(folder: Path, specs: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    """The regular files that no ignore file of their folders names. Links to folders are not followed."""
    own_lines = [line for name in IGNORE_FILES for line in _lines(folder / name)]
    specs = [*specs, (folder, _spec(own_lines))] if own_lines else specs
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): name it in .rayignore.",
            code="unreadable-folder",
            field=str(folder),
        ) from error
    for path in entries:
        is_folder = path.is_dir() and not path.is_symlink()
        if any(spec.match_file(path.relative_to(root).as_posix() + "/" * is_folder) for root, spec in specs):
            continue
        if is_folder:
            yield from _walk(path, specs)
        elif path.is_file():
            yield path


def _spec(lines: list[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
