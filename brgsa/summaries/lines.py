"""The lines of a section: those that a margin broke joined again, without bullets; a list in a row taken apart."""

from __future__ import annotations

import re

from brgsa.summaries.pairs import VERDICT_WORD, is_verdict_pair, pair_of

BULLET = re.compile(
    r"^[ \t]*(?:[-–—•·*►▪●○◦‣>+]+(?=[ \t\w(\[])|"
    r"\(?\d{1,2}[.)](?=[ \t]*[A-Za-z(\[])|\(?(?:[ivx]{1,4}|[A-Za-z])[.)](?=[ \t]))[ \t]*"
)
TICK = re.compile(r"^[ \t]*[-*•]?[ \t]*(?:[\[(](?P<in>[ xX✓✔_-]?)[\])]|(?P<box>[☐☑☒✓✔✗✘□■]))[ \t]*(?P<what>\S.*)$")
TICKED = frozenset("xX✓✔☑☒■")
_INLINE_NUMBER = re.compile(r"(?<=\S)\s+(?=\(?\d{1,2}[.)]\s*[A-Za-z(])")
_ITEM = re.compile(r"(?:^|\s)\(?([12])[.)]\s*[A-Za-z(]")
_LETTER = re.compile(r"[^\W\d_]")
# What may stand for the colon before a verdict at the end of a line: a question mark, a tab, dots, wide space, a dash.
_SPACED = re.compile(
    r"(?<=\w)(?:[ ]*\?[ \t]*|[ ]*\t\s*|[ ]{2,}|[ ]*\.{3,}[ ]*|[ ]+[-–—]+>?[ ]*)"
    rf"(?=(?:{VERDICT_WORD}|multiple|several|single|few|small|mild|moderate|[+0])[ \t]*(?:[.;,|\n]|$))",
    re.IGNORECASE,
)
_CELLS = re.compile(
    rf"^([A-Za-z /()]{{3,50}}?)[ \t]*[,;][ \t]*((?:{VERDICT_WORD}|[01])\.?)[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_ABBREVIATED = re.compile(r"\b(?:neg|pos)\.(?=\s|$)", re.IGNORECASE)
_VERDICT_ALONE = re.compile(rf"{VERDICT_WORD}\.?$", re.IGNORECASE)
_VERDICT = re.compile(rf"{VERDICT_WORD}\b", re.IGNORECASE)
_BROKEN_PAIR = re.compile(r"\s[-–—=]$")
_STOPPED = re.compile(r"[.!?:;|]$")
_OPEN_END = re.compile(
    r"(?:,|/|\b(?:no|not|of|the|a|an|and|or|nor|with|without|in|on|at|to|for|from|by|is|are|was|were|has|have|had|be|been|"
    r"both|which|that|evidence|any))$",
    re.IGNORECASE,
)
# Before a small letter, these too.
_ADJECTIVE = re.compile(
    r"\b(?:right|left|bilateral|pleural|pericardial|pulmonary|lung|lymph|hiatal|small|mild|acute|focal)$", re.IGNORECASE
)
_SHORT = 40  # characters; a margin breaks longer lines


def paragraphs(section: str) -> list[list[str]]:
    """The lines of each paragraph of a section."""
    if "\n" in section or len(section) < 80:
        section = _CELLS.sub(r"\1: \2", section)
    if any(mark in section for mark in ("?", "\t", "  ", "...", " -", " –", " —")):
        section = _SPACED.sub(": ", section)
    section = _ABBREVIATED.sub(lambda short: "negative" if short[0][0] in "nN" else "positive", section)
    return [_joined(paragraph) for paragraph in re.split(r"\n[ \t]*\n", section)]


def items(line: str) -> list[str]:
    """A line's items: "1. No effusion 2. Nodule" has two; each without its bullet or number."""
    numbers = {item[1] for item in _ITEM.finditer(line)}
    several = "2" in numbers and ("1" in numbers or not BULLET.match(line))
    return [BULLET.sub("", item) for item in (_INLINE_NUMBER.split(line) if several else [line])]


def _joined(paragraph: str) -> list[str]:
    out: list[str] = []
    raw = [line for raw_line in paragraph.split("\n") if (line := raw_line.strip())]
    punctuated = any(line.endswith(".") or ". " in line for line in raw)
    for line in raw:
        if not _LETTER.search(line) and not line.strip("-=_*~ "):
            continue  # a rule
        if out and _VERDICT_ALONE.match(line) and not re.search(r"[.!?:]$", out[-1]):
            out[-1] = f"{out[-1].rstrip(' -–—=')}: {line}"
        elif out and _continues(out[-1], line, punctuated):
            out[-1] = f"{out[-1]} {line}"
        else:
            out.append(line)
    return out


def _continues(before: str, line: str, punctuated: bool) -> bool:
    """Whether `line` goes on with the sentence of the line before it; `punctuated`: the paragraph has full stops."""
    if _STOPPED.search(before) or BULLET.match(line) or TICK.match(line) or line.startswith("|"):
        return False
    if _BROKEN_PAIR.search(before) and _VERDICT.match(line):
        return True
    last = re.split(r"[.!?]\s+", before)[-1]
    if is_verdict_pair(BULLET.sub("", last)):
        return False
    small = re.match(r"\W*[a-z]", line) is not None
    if re.match(r"[^:.!?]{2,40}:", line) and (not small or pair_of(line)):
        return False
    if _OPEN_END.search(before):
        return True
    if small and (punctuated or len(before) > _SHORT or _ADJECTIVE.search(before)):
        return True
    # In capitals, a capital letter does not tell where a sentence begins.
    return punctuated and ":" not in last and before.isupper() and line.isupper()
