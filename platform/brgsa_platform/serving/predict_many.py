"""`brgsa predict --out`: many scans to one table, a row a scan. Killed, it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa_platform.runtime.progress import progress
from brgsa_platform.serving.predict import SHARE
from brgsa_platform.serving.scan_list import ScanPlace, find_scans
from brgsa_platform.serving.scorer import ScanOptions, Scorer, Seen

READERS = 2  # threads that read ahead; a whole scan is in each one's memory
FORMATS = (".csv", ".parquet")
PART = ".part"

Row = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """A finished table, its scans, and those of them that could not be scored."""

    out: Path
    scans: int
    refused: int

    def summary(self) -> str:
        """One line."""
        not_scored = f", {self.refused} of them not scored (see the column 'refused')" if self.refused else ""
        return f"{self.out}: {self.scans} scans{not_scored}."


def predict_many(
    checkpoint: Path | str,
    scans: Sequence[Path],
    out: Path,
    prompts: Sequence[str] | None = None,
    options: ScanOptions = ScanOptions(),
    *,
    pairing: str = "mean",
    device: str | None = None,
) -> Predictions:
    """Score scans into a CSV or Parquet table.

    Its columns are `scan`, `series`, `refused` (why there are no scores), `cautions`, `outside` (how the scan differs from
    all of the training's), then for each prompt its score and, where the checkpoint can tell, the share of validation scans
    that score lower.

    Args:
        scans: files, folders and lists (see `find_scans`).
        out: a file that ends in .csv or .parquet. Beside it lies a `.part` file until all is done; with the same checkpoint and
            prompts a second call goes on from there.

    Raises:
        UserError: `out` has another ending ("table-format") or cannot be written ("table-not-writable"), the part file is
            another call's ("other-predictions"), or see `Scorer` and `find_scans`.
    """
    if out.suffix not in FORMATS:
        raise UserError(
            f"--out {out} must end in {' or '.join(FORMATS)}.", code="table-format", field="--out", value=out.suffix
        )
    places = find_scans(scans)
    scorer = Scorer(checkpoint, prompts, pairing=pairing, device=device)
    with _refusing_to_write(out):
        rows = _rows(scorer, places, options, out.with_name(out.name + PART))
        _write(out, rows, scorer)
        out.with_name(out.name + PART).unlink()
    return Predictions(out, len(rows), sum(bool(row["refused"]) for row in rows))


def _rows(scorer: Scorer, places: Sequence[ScanPlace], options: ScanOptions, part: Path) -> list[Row]:
    """The rows of all places: those that an earlier call made, and the others, each kept as soon as it is made."""
    key = {"checkpoint": str(scorer.path.resolve()), "prompts": scorer.texts, "pairing": scorer.pairing}
    made = _earlier(part, key)
    left = [place for place in places if _name(place) not in made]
    with part.open("a", encoding="utf-8") as journal, progress(len(left), "score scans") as advance:
        if not journal.tell():
            _note(journal, key)
        with ThreadPoolExecutor(READERS) as readers:
            waiting = {n: readers.submit(_read, scorer, place, options) for n, place in enumerate(left[: READERS + 1])}
            for number, place in enumerate(left):
                seen = waiting.pop(number).result()
                ahead = number + READERS + 1
                if ahead < len(left):
                    waiting[ahead] = readers.submit(_read, scorer, left[ahead], options)
                row = made[_name(place)] = _row(scorer, place, seen)
                _note(journal, row)
                advance()
    return [made[_name(place)] for place in places]


def _read(scorer: Scorer, place: ScanPlace, options: ScanOptions) -> Seen | str:
    """The scan, or why it cannot be used."""
    if place.refused:
        return place.refused
    try:
        return scorer.read(place.path, ScanOptions(options.metadata, place.series, options.trust_geometry))
    except UserError as error:
        return str(getattr(error, "reason", error))


def _row(scorer: Scorer, place: ScanPlace, seen: Seen | str) -> Row:
    row: Row = {"scan": str(place.path), "series": place.series or "", "refused": "", "cautions": "", "outside": ""}
    if isinstance(seen, str):
        return {**row, "refused": seen}
    row |= {"cautions": " ".join(seen.cautions), "outside": "; ".join(seen.outside)}
    for prompt in scorer.score(seen):
        row[prompt.prompt] = prompt.score
        if prompt.percentile is not None:
            row[_share(prompt.prompt)] = prompt.percentile
    return row


def _earlier(part: Path, key: dict[str, Any]) -> dict[str, Row]:
    """The rows of a part file by scan; a last line that was cut off is no row."""
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
    with part.open("r+b") as file:
        file.truncate(whole)
    if lines and lines[0] != key:
        raise UserError(
            f"{part} belongs to another checkpoint or other prompts: remove it, or choose another --out.",
            code="other-predictions",
            field="--out",
            value=str(part),
        )
    return {_name(ScanPlace(Path(row["scan"]), row["series"] or None)): row for row in lines[1:]}


def _note(journal: IO[str], line: dict[str, Any]) -> None:
    journal.write(json.dumps(line) + "\n")
    journal.flush()


def _name(place: ScanPlace) -> str:
    return f"{place.path}\n{place.series or ''}"


def _share(prompt: str) -> str:
    return f"{prompt} ({SHARE})"


def _write(out: Path, rows: Sequence[Row], scorer: Scorer) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    fixed = ("scan", "series", "refused", "cautions", "outside")
    numbers = [name for text in scorer.texts for name in (text, _share(text)) if any(name in row for row in rows)]
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in fixed}
    columns |= {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in numbers}
    table = pa.table(columns)
    with written_aside(out) as aside:
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, aside)
        else:
            pyarrow.parquet.write_table(table, aside)


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
