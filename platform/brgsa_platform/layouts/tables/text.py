"""Text tables as programs write them: their encoding, their separator, their rows."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SEPARATORS = (",", ";", "\t", "|")

# Windows-1252 is taken only where a file's bytes are the same letters in central Europe (1250) and Turkish (1254), and none
# would be a letter of DOS or the Mac: those are below 160, where Windows has the signs that word processors write.
_SIGNS = "€…‘’“”„‚–—•™"
_WESTERN = frozenset(_SIGNS) | {
    letter
    for letter in map(chr, range(160, 256))
    if all(letter.encode("cp1252").decode(page, "replace") == letter for page in ("cp1250", "cp1254"))
}
_LATIN = re.compile(r"[A-Za-z]{2}")  # which bytes that are no text hardly give as UTF-16
_LONG_NUMBER = 5  # digits from which a number is an id, no count, size or year
_LONGEST_LIST = 20  # points of a numbered list in a report
_INSIDE_WORDS = re.compile(r"[^\W\d_][€…“”„‚•™±²³µ«»§©®×½¼¾¡¿¶¨´¸ªº][^\W\d_]")
_BROKEN_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
_FOREIGN_RUN = re.compile(r"[^\x00-\x7f]{4}")


class UnreadableText(ValueError):
    """Bytes that are no table of text.

    Attributes:
        reason: why, and what to do, without anything that the table holds.
        row: number of the data row at fault, counted from 1; None where it is the file.
        code: as in `UserError`.
    """

    def __init__(self, reason: str, row: int | None = None, code: str = "unreadable-table") -> None:
        super().__init__(reason)
        self.reason, self.row, self.code = reason, row, code


def decoded(raw: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16 (with or without its mark), or in Windows-1252 where that is unambiguous.

    Raises:
        UnreadableText: it is neither.
    """
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise UnreadableText("the gzip file is cut short or damaged") from error
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if raw.startswith(mark):
            return _strictly(raw, encoding)
    if b"\0" in raw:
        # In a table of mostly ASCII every second byte is zero; which half tells the order.
        return _strictly(raw, "utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return _western(raw)


def _strictly(raw: bytes, encoding: str) -> str:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableText("its text is cut short or damaged; save it as UTF-8") from error
    if "\0" in text or (not text.isascii() and encoding != "utf-8-sig" and not _LATIN.search(text)):
        raise UnreadableText("it is no table of text; save it as CSV in UTF-8")
    return text


def _western(raw: bytes) -> str:
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    foreign = {letter for letter in text if letter > "\x7f"} - _WESTERN
    if "\0" in text or foreign or _BROKEN_UTF8.search(raw) or _FOREIGN_RUN.search(text) or _INSIDE_WORDS.search(text):
        raise UnreadableText("its letters are neither UTF-8 nor plainly Windows-1252; save it as UTF-8")
    return text


class Cells(NamedTuple):
    """A table's cells as text, without blanks around them.

    Attributes:
        header: names of the columns.
        rows: the rows that are not empty, each as long as the header.
        numbers: of these rows, counted from 1 below the header.
    """

    header: list[str]
    rows: list[list[str]]
    numbers: list[int]


def parsed(text: str) -> Cells:
    """The cells of a text table; empty rows are left out.

    Raises:
        UnreadableText: the separator cannot be told, a quotation mark is open, or a row ("ragged-row") has more or fewer
            cells than the header.
    """
    text = text.removeprefix("\ufeff")
    told = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
    if told:
        return _rows(text[told.end() :], told[1])
    if "\0" in text:
        raise UnreadableText("it is no table of text; save it as CSV in UTF-8")
    candidates = [sep for sep in SEPARATORS if len(_first_record(text, sep)) > 1]
    if len(candidates) < 2:
        return _rows(text, candidates[0] if candidates else ",")
    fitting: list[Cells] = []
    errors: list[UnreadableText] = []
    for separator in candidates:
        try:
            fitting.append(_rows(text, separator))
        except UnreadableText as error:
            errors.append(error)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise errors[0]
    raise UnreadableText("commas, semicolons or tabs may separate its columns; save it with commas")


def _first_record(text: str, separator: str) -> list[str]:
    try:
        return next(_reader(text, separator), [])
    except csv.Error:
        return []


def _reader(text: str, separator: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)


def _rows(text: str, separator: str) -> Cells:
    read = 0

    def records() -> Iterable[list[str]]:
        nonlocal read
        for record in _reader(text, separator):
            yield [cell.strip().replace("\r\n", "\n") for cell in record]
            read += 1

    try:
        made = cells_of(records())
    except csv.Error as error:
        raise UnreadableText(
            f"a quotation mark of row {read} is not closed, or stands inside a cell that is not quoted", read
        ) from error
    for row, number in zip(made.rows, made.numbers, strict=True):
        if any("\n" in cell and _holds_rows(row, at, separator) for at, cell in enumerate(row)):
            raise UnreadableText(
                f"a cell of row {number} holds the rows after it: a quotation mark there is not closed; close it",
                number,
            )
    return made


def _holds_rows(row: Sequence[str], at: int, separator: str) -> bool:
    """Whether a line in a cell looks like a row of the table: as many cells, and all others formed as those of its own row.

    So it is where a quotation mark that opens in one row is closed only by the next one, some rows below.
    """
    first, *others = (line.split(separator) for line in row[at].split("\n"))
    # The last one may go on behind the cell, as a row of its own.
    if any(_alike(cells, row, at, len(row)) for cells in others) or _alike(others[-1], row, at, at + 1):
        return True
    return _all_shaped([[*row[:at], *first], *others], row, at)


def _all_shaped(lines: Sequence[Sequence[str]], row: Sequence[str], at: int) -> bool:
    """Whether all lines, the row's own first, have the shape of rows, where short numbers are all that tells each.

    A numbered list counts on, and sets a blank behind the comma; "12,5 mm" has a digit there. One line alone tells nothing
    in a table of two columns.
    """
    own, *others = lines
    number = next((i for i, cell in enumerate(row) if i != at and cell.isdecimal()), None)
    if number is None or len(others) + len(row) < 4:
        return False
    whole = [*([own] if at < len(row) - 1 else []), *others[:-1]]
    halves = (len(row), at + 1)  # of the last line, which may go on behind the cell
    if not all(_same_forms(cells, row, at, len(row)) for cells in whole) or not any(
        _same_forms(others[-1], row, at, count) for count in halves
    ):
        return False
    numbers = [int(cells[number]) for cells in others if len(cells) > number]
    counting = list(range(numbers[0], numbers[0] + len(numbers))) if numbers and numbers[0] <= 2 else None
    return numbers != counting and not any(re.match(r"[\s\d]", cells[at]) for cells in others)


def _alike(cells: Sequence[str], row: Sequence[str], at: int, count: int) -> bool:
    """Whether these are so many cells, and each but that at `at` is formed as the row's; short numbers alone tell nothing."""
    others = [i for i, cell in enumerate(row[:count]) if i != at and cell]
    return _same_forms(cells, row, at, count) and any(
        _form(row[i]) not in ("", "0") or _goes_on(row[i], cells[i]) for i in others
    )


def _same_forms(cells: Sequence[str], row: Sequence[str], at: int, count: int) -> bool:
    """Whether these are so many cells, and each but that at `at` is formed as the row's, where that is not empty."""
    return len(cells) == count and all(
        _form(cells[i]) == _form(row[i]) for i, cell in enumerate(row[:count]) if i != at and cell
    )


def _goes_on(number: str, other: str) -> bool:
    """Whether two numbers look like the ids of two rows: as long as each other and no count or size, or the next one."""
    other = other.strip()
    if not (number.isdecimal() and other.isdecimal()):
        return False
    long = len(number) == len(other) >= _LONG_NUMBER
    return long or (int(number) > _LONGEST_LIST and int(other) == int(number) + 1)


def _form(cell: str) -> str:
    """A cell with its digits and letters made one each: `a0.a` of `scan12.nii`; empty where it holds no digit."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell.strip())) if re.search(r"\d", cell) else ""


def cells_of(records: Iterable[Sequence[str]]) -> Cells:
    """Header and rows of records of text, of which the first that is not empty is the header.

    Raises:
        UnreadableText: a row has more or fewer cells than the header ("ragged-row").
    """
    made = Cells([], [], [])
    below = 0
    for record in records:
        below += bool(made.header)
        if not any(record):
            continue
        if not made.header:
            made.header.extend(record)
            continue
        if len(record) != len(made.header):
            raise UnreadableText(
                f"row {below} has {len(record)} cells and the header {len(made.header)}, so that nobody can say which value "
                "belongs to which column; give all rows the header's columns",
                below,
                "ragged-row",
            )
        made.rows.append(list(record))
        made.numbers.append(below)
    return made
