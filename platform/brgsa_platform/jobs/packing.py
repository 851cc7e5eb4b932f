"""The files that go with a job: a working folder without its data, and the code that runs here.

Our three packages lie in the archive as they do in the repository, under `brgsa`, `tune_spaces` and `platform/`, wherever they
were imported from: a job runs the code of the one who sent it. `platform/` gets no `__init__.py`, or it would be taken for
the standard library's module.
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

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SOURCE_ROOT = "platform"
PACKAGES = {"brgsa": "brgsa", "tune_spaces": "tune_spaces", "brgsa_platform": f"{SOURCE_ROOT}/brgsa_platform"}
LIMIT = 100 * 2**20  # bytes; the archive lies in the memory of the cluster's head, and Ray itself refuses 500 MiB
LARGEST = 5  # folders in a refusal
# What does not go with a job, in the notation of .gitignore: caches, what runs write, scans and tables of patients, secrets.
CACHES = (".git/", ".venv/", "venv/", "node_modules/", "__pycache__/", ".*_cache/", ".hypothesis/", "*.egg-info/")
OUTPUTS = ("/data/", "/store/", "/stores/", "/runs/", "/searches/", "/demo-out/", "mlruns*/", "mlflow.db*")
PATIENTS = ("*.nii", "*.nii.gz", "*.nrrd", "*.mha", "*.dcm", "*.npz", "*.parquet", "*.safetensors", "*.pt")
SECRETS = (".env*", ".netrc", ".ssh/", ".aws/", ".kube/", ".ray/", ".config/", "*.pem", "*.key")
EXCLUDES = [*CACHES, *OUTPUTS, *PATIENTS, *SECRETS]
IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class JobFiles:
    """What goes with a job: name in the archive → file here; `size` is in bytes, before compression."""

    folder: Path
    files: dict[str, Path]
    size: int

    def write(self, archive: Path) -> None:
        """A zip of it, the same bytes for the same files: Ray keeps an archive by its checksum and sends it once."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, path in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name)  # of 1980, whenever the file was written
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0o777 | 0o600) << 16
                packed.writestr(entry, path.read_bytes())


def collect_files(folder: Path) -> JobFiles:
    """The working folder's files without data, runs, caches and secrets, and our packages over them.

    Raises:
        UserError: it is no folder, or too large; then with its largest folders.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is no folder.")
    files: dict[str, Path] = {}
    sizes: Counter[str] = Counter()
    for path in _walk(folder, [(folder, _spec(EXCLUDES))]):
        name = path.relative_to(folder).as_posix()
        files[name] = path
        sizes[name.partition("/")[0] if "/" in name else "."] += path.stat().st_size
    total = sum(sizes.values())
    if total > LIMIT:
        largest = ", ".join(f"{name} {_mib(size)}" for name, size in sizes.most_common(LARGEST))
        raise UserError(
            f"{folder} holds {_mib(total)} for the job, more than {_mib(LIMIT)}; largest: {largest}. Name what the job does "
            "not need in .gitignore or .rayignore, or give a smaller --working-dir."
        )
    for package, place in PACKAGES.items():
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations is not None
        origin = Path(next(iter(found.submodule_search_locations)))
        code = {
            f"{place}/{path.relative_to(origin).as_posix()}": path
            for path in _walk(origin, [(origin, _spec(["__pycache__/"]))])
        }
        # A folder of this name in the working folder is this package, or would hide it.
        files = {name: path for name, path in files.items() if not name.startswith(f"{place}/")} | code
    return JobFiles(folder, files, sum(path.stat().st_size for path in files.values()))


def _walk(folder: Path, specs: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    """Regular files that no ignore file on the way names; links are not followed out of their folder."""
    own = [line for name in IGNORE_FILES for line in _lines(folder / name)]
    specs = [*specs, (folder, _spec(own))] if own else specs
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): name it in .rayignore.") from error
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


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
