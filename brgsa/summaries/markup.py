"""A report as it comes, freed of what is no language: markup, debris of line ends, short forms, dictated punctuation marks."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache

from brgsa.summaries.english import apart, is_known
from brgsa.summaries.vocabulary import read_yaml

_TAG = re.compile(r"</?(\w+)\b[^<>]*>|<!--.*?-->|<!\w[^<>]*>", re.DOTALL)
_BLOCKS = frozenset(
    {"br", "p", "div", "li", "ul", "ol", "tr", "table", "h1", "h2", "h3", "h4", "h5", "h6", "body", "section"}
)
# Line ends as databases, spreadsheets and HL7 messages spell them.
_LINE_ENDS = re.compile(
    r"\\r\\n|\\n|\\r|\\\.br\\|\\X0[AD]\\|_x000[dDaA]_|\r\n?|[\x0b\x0c\x85\u2028\u2029]|~(?=\s*[A-Z])"
)
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff\x00-\x08\x0e-\x1f]")
_HYPHENATED = re.compile(r"(\w+)-[ \t]*\n[ \t]*([a-z]+)")
_EMPHASIS = re.compile(r"\*\*|__(?=\S)|(?<=\S)__|~~|`+|^[ \t]{0,3}#{1,6}[ \t]+|^[ \t]*>[ \t]+", re.MULTILINE)
_ITALICS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_\n]*[^\s*_])\1(?![\w*])")
_QUOTED = re.compile(r"(?<=:)[ \t]*[\"“”']([A-Za-z]+)[\"“”'](?=[ \t]*(?:[.;,|\n]|$))")
_STATUS = re.compile(r"[ \t]*[;,|\n][ \t]*(?:status|presence|value|state)[ \t]*:", re.IGNORECASE)
_JSON = re.compile(r"[\"']([^\"'\n:]+)[\"']\s*:\s*(?:[\"']([^\"'\n]*)[\"']|(\w+))\s*,?")
_NEW_LINE = re.compile(
    r"(?:(?<=[.:,])|(?<=\bperiod)|(?<=\bstop))[ \t]*(?:new|next) line\b[ \t,.]*|[ \t,.]*\b(?:new|next) paragraph\b[ \t,.]*",
    re.IGNORECASE,
)
_FULL_STOP = re.compile(r"[ \t]*\bfull stop\b", re.IGNORECASE)
_DICTATED_PERIOD = re.compile(r"[ \t]+\bperiod(?=[ \t]*(?:$|\n|[A-Za-z]))", re.IGNORECASE)
_DICTATED_MARKS = {"comma": ",", "colon": ":", "semicolon": ";"}
_SIGNED = (
    (re.compile(r"[ ]*\([ ]*\?[ ]*\)"), "?"),
    (re.compile(r"(?<!\w)\(\s*[-–—−]\s*\)\s*(?=[A-Za-z])"), "No "),
    (re.compile(r"(?<!\w)\(\s*\+\s*\)\s*(?=[A-Za-z])"), "Positive for "),
    (re.compile(r"(?<=[A-Za-z])\s*\(\s*[-–—−]\s*\)"), ": none"),
    (re.compile(r"(?<=[A-Za-z])\s*\(\s*\+\s*\)"), ": present"),
    (
        re.compile(r"(?<=[A-Za-z])\s*\(\s*(none|no|nil|absent|negative|present|yes|positive)\s*\)", re.IGNORECASE),
        r": \1",
    ),
    (re.compile(r"^(?![ \t]*[-*]?[ \t]*\[)(.*[A-Za-z])[ \t]*(\[[ xX]\])[ \t]*$", re.MULTILINE), r"\2 \1"),
    (re.compile(r"(?<!\w)[-–−]ve\b"), "negative"),
    (re.compile(r"(?<!\w)\+ve\b"), "positive"),
    (re.compile(r"(?<!\w)[øØ∅]\s*(?=[A-Za-z])"), "no "),
)
_BOX_END = r"(?=[ ]*(?:[\[☐☑☒□■.;,\n]|$))"
_BOXES = (
    (re.compile(rf"(?:\[[ ]?\]|[☐□])[ ]*(?:yes|no|absent|present)\b{_BOX_END}", re.IGNORECASE), ""),
    (re.compile(rf"(?:\[[xX]\]|[☑☒■])[ ]*(yes|no|absent|present)\b{_BOX_END}", re.IGNORECASE), r"\1"),
)
_RTF = re.compile(r"\\(?:par|line)\b[ ]?|(\\[a-z]+-?\d*[ ]?|[{}])")
_LONG_WORD = re.compile(r"[A-Za-z]{6,}")
_SIGN = re.compile(r"[(][ ]*[-–—−+?nypaNYPA]|\[[ xX]\]|[-–+]ve\b|[øØ∅]")
_TOKEN_ENDS = r"(?![\w/'])"  # no letter, digit, slash or apostrophe follows
_RUN_TOGETHER = (
    (re.compile(r"(?<=[a-z])\.(?=\d{1,2}[.)][ ]?[A-Z])"), ". "),  # effusion.2.Nodule
    (re.compile(r"(?<=[a-z]{3})(?=[A-Z][a-z]+\b)(?<!\bMac)"), ". "),  # effusionNo
    (re.compile(r"(?<=[A-Za-z]{3})\.(?=[A-Za-z]{2,}[ ,:.])(?!(?:com|org|net)\b)"), ". "),  # effusion.no
    (re.compile(r"(?<=[A-Za-z]{3})\?(?=[A-Z][a-z])"), "? "),  # mass?There
    # "No effusion No pneumothorax"
    (
        re.compile(
            r"(?<=[a-z]{3})[ \t]+(?=(?:No|There|The|Both|Without|Normal|Mild|Minimal|Moderate|Small|Stable|Unchanged) [a-z])"
        ),
        ". ",
    ),
    (re.compile(r"(?<=[A-Za-z)]),(?=[A-Za-z])"), ", "),
    (re.compile(r"(?<=[A-Za-z]{3});(?=\S)"), "; "),
)


def clean(report: str) -> str:
    """The report as plain text, its lines kept."""
    text = unicodedata.normalize("NFKC", html.unescape(html.unescape(report)) if "&" in report else report)
    if text.lstrip().startswith("{\\rtf"):
        text = _RTF.sub(lambda code: "" if code[1] else "\n", text)
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text).replace("’", "'").replace("‘", "'").replace("−", "-")
    if "<" in text:
        text = _TAG.sub(_tag, text)
    if text.lstrip().startswith("{"):
        text = _JSON.sub(lambda pair: f"\n{pair[1]}: {pair[2] if pair[2] is not None else pair[3]}\n", text).strip(
            "{}[] \n"
        )
    if "\n" in text:
        text = _HYPHENATED.sub(_rejoined, text)
    if "*" in text or "_" in text or "`" in text or "#" in text or ">" in text:
        text = _ITALICS.sub(r"\2", _EMPHASIS.sub("", text))
    if ":" in text:
        text = _STATUS.sub(":", _QUOTED.sub(r" \1", text))
    text = _punctuated(text)
    for box, word in _BOXES if "[" in text or "☐" in text or "□" in text else ():
        text = box.sub(word, text)
    if _SIGN.search(text):
        for sign, word in _SIGNED:
            text = sign.sub(word, text)
    text = _short_form().sub(_spelled_out, text)
    for joint, written in _RUN_TOGETHER:
        text = joint.sub(written, text)
    return _LONG_WORD.sub(lambda word: apart(word[0]), text)


def _tag(tag: re.Match[str]) -> str:
    name = (tag[1] or "").lower()
    return "\n" if name in _BLOCKS else " | " if name in ("td", "th") else " " if name in ("script", "style") else ""


def _rejoined(broken: re.Match[str]) -> str:
    """A word that was broken at a line's end; "left-sided" and "ground-glass" keep their hyphen."""
    joined = broken[1] + broken[2]
    return f"{broken[1]}-{broken[2]}" if not is_known(joined) and is_known(broken[1]) else joined


def _punctuated(text: str) -> str:
    """Punctuation that was dictated in words; "period" only where the report has no full stop of its own."""
    lower = text.lower()
    if "full stop" in lower or "new " in lower or "next " in lower:
        text = _FULL_STOP.sub(".", _NEW_LINE.sub("\n", text))
    if "period" in lower and _DICTATED_PERIOD.search(text) and not re.search(r"[a-z)]\.(?:\s|$)", text):
        text = _DICTATED_PERIOD.sub(".", text)
        for word, mark in _DICTATED_MARKS.items():
            text = re.sub(rf"[ \t]+{word}\b", mark, text, flags=re.IGNORECASE)
    return text


@cache
def _short_forms() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(rf"(?:{short}){_TOKEN_ENDS}", re.IGNORECASE), long)
        for short, long in read_yaml("structure.yaml")["short_forms"].items()
    ]


@cache
def _short_form() -> re.Pattern[str]:
    """Any short form as a whole token; most reports have none, so one search is all they cost."""
    shorts = "|".join(read_yaml("structure.yaml")["short_forms"])
    return re.compile(rf"(?<![\w/])(?:{shorts}){_TOKEN_ENDS}", re.IGNORECASE)


def _spelled_out(found: re.Match[str]) -> str:
    text = found[0]
    # Where it stands in the report, for a form may look at what comes before and after it.
    long = next(long for short, long in _short_forms() if short.match(found.string, found.start()))
    return (
        long.capitalize()
        if text[0].isupper() and not text.isupper()
        else long.upper()
        if text.isupper() and (len(text) > 3 or found.string.isupper())  # a line in small letters would end a sentence
        else long
    )
