"""The scans that files, folders and lists name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brgsa.errors import UserError
from brgsa.volumes import folders_below, list_series
from brgsa.volumes.errors import unreadable
from brgsa_platform.layouts.ids import SUFFIXES

LIST = ".txt"
IMAGES = tuple(suffix for suffix in SUFFIXES if suffix != ".dcm")


@dataclass(frozen=True)
class ScanPlace:
    """One scan.

    Attributes:
        path: its file, or the folder of its DICOM series or one above.
        series: the name of the series (see `brgsa.volumes.Series`); None for a file.
        refused: why what lies there is no scan; empty where it may be one.
    """

    path: Path
    series: str | None = None
    refused: str = ""


def find_scans(paths: Sequence[Path]) -> list[ScanPlace]:
    """The scans of some paths, in order, each once.

    A folder gives all image files in it and below, then all DICOM series; those that are no CT volumes come with their
    reason. A `.txt` file names a path a line, from its own folder.

    Raises:
        UserError: a path does not exist ("file-missing"), a list or a folder cannot be read ("list-unreadable",
            "file-unreadable"), or there is no scan ("no-scan").
    """
    places = list(dict.fromkeys(place for path in paths for place in _scans(path)))
    if not places:
        raise UserError(
            f"There is no scan in {', '.join(map(str, paths))}: give CT files, or folders that hold some.",
            code="no-scan",
            field="scans",
            value=str(paths[0]) if paths else None,
        )
    return places


def _scans(path: Path, listed: bool = False) -> Iterator[ScanPlace]:
    if not path.exists():
        raise UserError(f"{path} does not exist.", code="file-missing", field="scans", value=str(path))
    if path.is_dir():
        yield from _in_folder(path)
    elif path.suffix.lower() == LIST and not listed:
        for name in _listed(path):
            yield from _scans(path.parent / name, listed=True)
    else:
        yield ScanPlace(path)


def _listed(path: Path) -> list[str]:
    """The names in a list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(
            f"The list {path} cannot be read ({reason}): mend it.",
            code="list-unreadable",
            field="scans",
            value=str(path),
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _in_folder(root: Path) -> Iterator[ScanPlace]:
    folders = list(folders_below(root))
    for folder in folders:
        try:
            files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name.lower().endswith(IMAGES)]
        except OSError as error:
            raise unreadable(folder, error) from error
        yield from map(ScanPlace, files)
    for series in list_series(folders):
        if series.uid:  # what has none is no DICOM file
            yield ScanPlace(root, series.name, series.refused)
