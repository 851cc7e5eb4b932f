"""Many scans to one table, a row a scan: their scores (`brgsa predict --out`) or their embeddings (`brgsa embed`).

Killed, it goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa.volumes import folders_below
from brgsa_platform.runtime.progress import progress
from brgsa_platform.serving.predict import PROBABILITY, SHARE, SUPERVISED
from brgsa_platform.serving.scan_list import ScanPlace, find_scans
from brgsa_platform.serving.scorer import ScanOptions, Scorer, Seen, metadata_rows

READERS = 2  # threads that read ahead; a whole scan is in each one's memory
FORMATS = (".csv", ".parquet")
PART = ".part"
# `refused` says why there is no result, `outside` how the scan differs from all of the training's.
FIXED = ("scan", "series", "refused", "cautions", "outside")

Row = dict[str, Any]
Make = Callable[[Seen], Row]  # a scan to the columns behind `FIXED`


@dataclass(frozen=True)
class ScanTable:
    """A finished table, its scans, those of them that could not be used, and what there is to say of its columns."""

    out: Path
    scans: int
    refused: int
    notes: Sequence[str] = ()

    def summary(self) -> str:
        """One line, and one a note."""
        refused = f", {self.refused} of them refused (the column 'refused' says why)" if self.refused else ""
        return "\n".join([f"{self.out}: {self.scans} scans{refused}.", *self.notes])


def predict_many(scorer: Scorer, scans: Sequence[Path], out: Path, options: ScanOptions = ScanOptions()) -> ScanTable:
    """Score scans into a CSV or Parquet table.

    Behind `FIXED` it has for each prompt its score; where the checkpoint can tell, the share of the validation scans that score
    lower; where one was fitted, the probability; and, of a prompt that is not zero-shot, the mark "supervised".

    Args:
        scans: files, folders and lists (see `find_scans`).
        out: a file that ends in .csv or .parquet. Beside it lies a `.part` file until all is done; with the same checkpoint,
            prompts and options a second call goes on from there.

    Raises:
        UserError: a prompt is the name of another column ("column-taken"); `out` has another ending ("table-format") or cannot
            be written ("table-not-writable"), the part file is another call's ("other-scores"), the options name a series
            ("series-in-table"); see also `find_scans` and `metadata_rows`.
    """
    _check_names(scorer.texts)

    def scores(seen: Seen) -> Row:
        row: Row = {}
        for prompt in scorer.score(seen):
            text, share, probability, supervised = _names(prompt.prompt)
            row[text] = prompt.score
            if prompt.percentile is not None:
                row[share] = prompt.percentile
            if prompt.probability is not None:
                row[probability] = prompt.probability
            if prompt.supervised:
                row[supervised] = True
        return row

    fits = scorer.probabilities.fits
    scalings = {text: [fits[text].temperature, fits[text].bias] for text in scorer.texts if text in fits}
    key = {"prompts": scorer.texts, "pairing": scorer.pairing, "probabilities": scalings}
    return replace(_table(scorer, find_scans(scans), out, options, scores, key), notes=_notes(scorer))


def _names(prompt: str) -> tuple[str, str, str, str]:
    """A prompt's columns: its score, the share of lower ones, the probability, the mark of a supervised one."""
    return prompt, f"{prompt} ({SHARE})", f"{prompt} ({PROBABILITY})", f"{prompt}{SUPERVISED}"


def _check_names(prompts: Sequence[str]) -> None:
    """Refuse a prompt whose columns would take the place of others."""
    taken = set(FIXED)
    for prompt in dict.fromkeys(prompts):
        if found := taken & set(_names(prompt)):
            raise UserError(
                f"The prompt {prompt!r} cannot have the column {min(found)!r}, which the table has for something else: "
                "write the prompt as a sentence.",
                code="column-taken",
                field="--prompt",
                value=prompt,
            )
        taken.update(_names(prompt))


def _notes(scorer: Scorer) -> list[str]:
    """Why prompts have no probability, and which are not zero-shot."""
    rows = [scorer.ranked(text, 0.0) for text in dict.fromkeys(scorer.texts)]
    why_not = dict.fromkeys(row.no_probability for row in rows if row.no_probability)
    supervised = [row.prompt for row in rows if row.supervised]
    told = f"Trained on labels, so not zero-shot, and marked{SUPERVISED}: {'; '.join(supervised)}"
    where = "" if all(row.probability is None for row in rows) else " for some prompts"
    return [*(f"No probability{where}: {why}." for why in why_not), *([told] if supervised else [])]


def embed(scorer: Scorer, scans: Sequence[Path], out: Path, options: ScanOptions = ScanOptions()) -> ScanTable:
    """The embeddings of scans as a Parquet table: behind `FIXED`, `plain` (v) and, for a model with a bank, `bridged` (v').

    Both are lists of D numbers, not normalised.

    Raises:
        UserError: as `predict_many`; the table is Parquet.
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} must end in .parquet.", code="table-format", field="--out", value=out.suffix)

    def embeddings(seen: Seen) -> Row:
        found = scorer.model.encode_volumes(seen.tensor()).cpu()
        row: Row = {"plain": found.plain[0].tolist()}
        if found.bridged is not None:
            row["bridged"] = found.bridged[0].tolist()
        return row

    return _table(scorer, find_scans(scans), out, options, embeddings, {"embeddings": True})


def _table(
    scorer: Scorer,
    places: Sequence[ScanPlace],
    out: Path,
    options: ScanOptions,
    make: Make,
    key: dict[str, Any],
) -> ScanTable:
    if out.suffix not in FORMATS:
        raise UserError(
            f"--out {out} must end in {' or '.join(FORMATS)}.", code="table-format", field="--out", value=out.suffix
        )
    part = out.with_name(out.name + PART)
    if options.series is not None:
        raise UserError(
            "A table has all series of a folder, each in its row: leave --series out.",
            code="series-in-table",
            field="--series",
            value=options.series,
        )
    table = None if options.metadata is None else Path(options.metadata)
    if table is not None:
        metadata_rows(table)  # what is wrong with it is no scan's fault
    key = {
        "checkpoint": str(scorer.path.resolve()),
        **key,
        "metadata": table and str(table.resolve()),
        "trust_geometry": options.trust_geometry,
    }
    with _refusing_to_write(out):
        rows = _rows(scorer, places, options, part, make, key)
        _write(out, rows)
        part.unlink()
    return ScanTable(out, len(rows), sum(bool(row["refused"]) for row in rows))


def _rows(
    scorer: Scorer, places: Sequence[ScanPlace], options: ScanOptions, part: Path, make: Make, key: dict[str, Any]
) -> list[Row]:
    """The rows of all places: those that an earlier call made, and the others, each kept as soon as it is made."""
    changed = {path: _changed(path) for path in {place.path for place in places}}  # before any of them is read
    made = _earlier(part, key, changed)
    left = [place for place in places if _name(place) not in made]
    with part.open("a", encoding="utf-8") as journal, progress(len(left), "read scans") as advance:
        if not journal.tell():
            _note(journal, key)
        with ThreadPoolExecutor(READERS) as readers:
            waiting = {n: readers.submit(_read, scorer, place, options) for n, place in enumerate(left[: READERS + 1])}
            for number, place in enumerate(left):
                seen = waiting.pop(number).result()
                ahead = number + READERS + 1
                if ahead < len(left):
                    waiting[ahead] = readers.submit(_read, scorer, left[ahead], options)
                row = made[_name(place)] = _row(place, seen, make)
                _note(journal, {"changed": changed[place.path], "row": row})
                advance()
    return [made[_name(place)] for place in places]


def _changed(path: Path) -> int:
    """When a scan last changed (ns): its file, or the latest of all files and folders in and below its folder."""
    if not path.is_dir():
        return path.stat().st_mtime_ns
    entries = (entry for folder in folders_below(path) for entry in (folder, *folder.iterdir()))
    return max(
        (entry if entry.exists() else entry.parent).stat().st_mtime_ns for entry in entries
    )  # a link may lead nowhere


def _read(scorer: Scorer, place: ScanPlace, options: ScanOptions) -> Seen | str:
    """The scan, or why it cannot be used."""
    if place.refused:
        return place.refused
    try:
        return scorer.read(place.path, replace(options, series=place.series))
    except UserError as error:
        return str(getattr(error, "reason", error))


def _row(place: ScanPlace, seen: Seen | str, make: Make) -> Row:
    row: Row = {"scan": str(place.path), "series": place.series or "", "refused": "", "cautions": "", "outside": ""}
    if isinstance(seen, str):
        return {**row, "refused": seen}
    return {**row, "cautions": " ".join(seen.cautions), "outside": "; ".join(seen.outside), **make(seen)}


def _earlier(part: Path, key: dict[str, Any], changed: Mapping[Path, int]) -> dict[str, Row]:
    """The rows of a part file by scan, but for scans that have changed; a last line that was cut off is no row."""
    if not part.exists():
        return {}
    lines: list[dict[str, Any]] = []
    whole = 0
    with part.open("rb") as file:
        for line in file:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
            whole += len(line)
    if whole < part.stat().st_size:
        os.truncate(part, whole)
    if lines and lines[0] != key:
        raise UserError(
            f"{part} belongs to another checkpoint, other prompts or options: remove it, or choose another --out.",
            code="other-scores",
            field="--out",
            value=str(part),
        )
    rows: dict[str, Row] = {}
    for noted in lines[1:]:
        row = noted["row"]
        place = ScanPlace(Path(row["scan"]), row["series"] or None)
        if changed.get(place.path) == noted["changed"]:
            rows[_name(place)] = row
    return rows


def _note(journal: IO[str], line: dict[str, Any]) -> None:
    journal.write(json.dumps(line) + "\n")
    journal.flush()


def _name(place: ScanPlace) -> str:
    return f"{place.path}\n{place.series or ''}"


def _write(out: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    others = list(dict.fromkeys(name for row in rows for name in row if name not in FIXED))
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in FIXED}
    columns |= {name: pa.array([row.get(name) for row in rows]) for name in others}
    with written_aside(out) as aside:
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(pa.table(columns), aside)
        else:
            pyarrow.parquet.write_table(pa.table(columns), aside)


@contextmanager
def _refusing_to_write(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The table {out} cannot be written ({error.strerror or error}): choose another --out.",
            code="table-not-writable",
            field="--out",
            value=str(out),
        ) from error
