"""A report split into sentences, and a sentence into clauses: a negation or a doubt holds within one clause."""

from __future__ import annotations

import re
from collections.abc import Iterator

# In CT-RATE's reports, a quotation mark or a bullet begins each point of the impression.
_MARKS = re.compile(r"[\"“”•·*]+|\s-\s(?=[A-Z])")
_HEADER = re.compile(
    r"(?:(?<=[.!?:])|^)\s*(?i:findings?|impressions?|conclusions?|results?|comments?)(?:\s*:\s*|\s+(?=[A-Z]))"
)
# A sentence ends at a full stop before a capital letter, but not in "5.5 mm" or "T12.vertebra".
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])|(?<=[.!])\s+(?=[a-z])|(?<=[a-z)][.!])(?=[A-Z][a-z])|\n+")
_WORD = re.compile(r"[^\W\d_]")
# "Nodule (resolved)": no clause of its own, as it judges the word before it.
_ADVERB = r"(?:(?:now|since|completely|fully|entirely|is|are|was|were|has|have|most|highly) )?"
_VERDICTS = {
    "history": r"resolved|disappeared|gone|removed|resected|no longer (?:seen|present|visible)",
    "absent": r"not (?:seen|present|visible|detected|observed|identified)|excluded|ruled out",
    "uncertain": r"suspected|possible|possibly|probable|probably|questionable|equivocal|uncertain|likely|"
    r"(?:cannot be |not )excluded",
}
_VERDICT = "|".join(f"(?P<{name}>{words})" for name, words in _VERDICTS.items())
BRACKETED = re.compile(rf"(?:\(|, (?=[\w ]+$)){_ADVERB}(?:{_VERDICT})(?:\)|$)", re.IGNORECASE)
# Each of these is a clause of its own: other text in brackets, text from a comma to a question mark, a relative clause in the
# middle of a sentence.
_ASIDE = re.compile(
    rf"(?!{BRACKETED.pattern})\([^()]*\)|(?<=[,?])[^,?()]*\?|,\s+which\s[^,]*,(?=\s+(?:is|are|was|were|can|could|has|have)\b)",
    re.IGNORECASE,
)
_NOT_FINAL = re.compile(r"\b(?:approx|dr|vs|ca|[IVX]+|[a-z]|\d)\.$", re.IGNORECASE)
# Before a small letter, these too are abbreviations.
_ABBREVIATION = re.compile(
    r"\b(?:mm|cm|fig|im|se|ser|img|max|min|diam|lt|rt|resp|incl|eg|ie|etc|seg|vertebra)\.$", re.IGNORECASE
)

_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had)\b(?:\s+(?:not|also|still|again|no|longer|clearly|newly|only))*\s+"
    r"(?:\w+ly\s+)?(?:observed|detected|seen|present|found|available|noted|noticed|identified|encountered|monitored|watched|"
    r"selected|chosen|distinguished|visuali[sz]ed|understood|normal|natural|open|preserved|increased|decreased|evaluated|"
    r"measured|thickened|enlarged|dilated|stable|larger|wider|regressed|disappeared|resolved|absent|accompanied|considered|"
    r"clear|intact|unremarkable|excluded)\b|\b(?:is|are|was|were) not$|\b(?:draws?|attracts?)\s+attention\b|\bappears?\b",
    re.IGNORECASE,
)
_PREDICATE = re.compile(rf"{_VERB.pattern}|\bthere\s+(?:is|are|was|were)\b", re.IGNORECASE)
_JOINT = re.compile(
    r"\s*;\s*|\s*:\s+|\s*,\s+(?:and\s+|but\s+)?|\s+(?:and|but|however|while|whereas|although)\s+|\s+with\s+(?=(?:mild|moderate|stable|minimal)\b)",
    re.IGNORECASE,
)
_HARD = re.compile(r"[;:]|\b(?:but|however|while|whereas|although)\b", re.IGNORECASE)
_DENIAL = re.compile(r"(?:no|without|there\s+(?:is|are|was|were)\s+no)\b", re.IGNORECASE)
# "No effusion, mild atelectasis": what begins so is no further item of the denied list.
_ASSERTION = re.compile(
    r"(?:(?:stable|unchanged|mild|minimal|moderate|severe|marked|extensive|multiple|several|scattered|few|persistent|residual|"
    r"known|chronic|new|small|tiny|trace)\b|an?\s|\d+(?:[.,]\d+)?\s*(?:mm|cm)\b)(?!.*\b(?:or|nor)\b)",
    re.IGNORECASE,
)
# Up to here goes a list: "no mass, small nodule, or effusion" denies all three.
_LIST_END = re.compile(rf"{_HARD.pattern}|\b{_DENIAL.pattern}", re.IGNORECASE)
_LISTED = re.compile(
    rf"(?:.*\b(?:demonstrates?|shows?|reveals?)\s+)?{_DENIAL.pattern}|(?:interval )?(?:resolution|disappearance) of\b",
    re.IGNORECASE,
)
# "No effusion, no nodule, emphysema present": each denied item has its own "no".
_PRESENT = re.compile(r"(?!.*\b(?:or|nor)\b).*\bpresent$", re.IGNORECASE)
_THERE = re.compile(r"\bthere\s+(?:is|are|was|were)\b", re.IGNORECASE)
# "No effusion was seen before; it is now present": the second clause takes back what the first denies.
_SEEN = r"(?:present|visible|seen|detected|observed|found|noted|identified)"
_IT = r"(?:it|this|that|these|those|they|one|some)"
NOW = re.compile(
    rf"(?:but\s+|and\s+)?(?:(?:now|today|currently|at present),?\s+(?:{_IT}\s+)?(?:(?:is|are)\s+)?{_SEEN}|"
    r"(?:now|today|currently),?\s+there\s+(?:is|are)(?:\s+(?:one|some))?|there\s+(?:is|are)(?:\s+(?:one|some))?\s+now|"
    rf"{_IT}\s+(?:is|are)\s+(?:now|newly|currently)\s+{_SEEN}(?:\s+(?:in|on|at)\b.*)?|"
    rf"{_IT}\s+(?:is|are)\s+{_SEEN}\s+(?:now|today|currently)|{_IT}\s+(?:is|are)\s+(?:therefore\s+)?new|"
    rf"{_IT}\s+(?:has|have)\s+(?:now\s+|since\s+|newly\s+|recently\s+)?(?:appeared|developed|occurred))\W*$",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"\s*(?:except|although|though|apart|aside|other than|besides|in addition to|rather than|instead of)\b",
    re.IGNORECASE,
)


def tidy(report: str) -> str:
    """The report with every run of white space replaced by one blank."""
    return " ".join(report.split())


def sentences(report: str) -> list[str]:
    """The report's sentences in order, without section headers and the marks of the impression."""
    out: list[str] = []
    for block in _MARKS.split(report):
        block = _HEADER.sub(" ", block)
        start = 0
        for end in _END.finditer(block):
            before = block[start : end.start()]
            if not _NOT_FINAL.search(before) and not (
                block[end.end() : end.end() + 1].islower() and _ABBREVIATION.search(before)
            ):
                out.append(before)
                start = end.end()
        out.append(block[start:])
    return [sentence for raw in out if _WORD.search(sentence := tidy(raw).strip(" .,·"))]


def clauses(sentence: str) -> Iterator[str]:
    """The sentence's clauses in order, and then the contents of its brackets.

    A clause has a predicate of its own, or begins after ";", ":", "but", "however" and the like. "Nodules are observed and
    effusion was not detected" is two clauses, "no nodule, mass and effusion was detected" is one.
    """
    plain = _ASIDE.sub(" ", sentence)
    start, before = 0, ""
    joints = list(_JOINT.finditer(plain))
    stops = [*(joint.start() for joint in joints[1:]), len(plain)]
    for joint, stop in zip(joints, stops, strict=False):
        left, ahead, rest = plain[start : joint.start()], plain[joint.end() : stop], plain[joint.end() :]
        if (
            _HARD.search(joint[0])
            or _DENIAL.match(ahead)
            or (_THERE.match(ahead) and _DENIAL.match(left))
            or _EXCEPT.match(left)
            or NOW.match(ahead)
            or _both_assert(left, ahead, rest)
            or (_LISTED.match(left) and _ASSERTION.match(_LIST_END.split(rest)[0]))
            or (_DENIAL.match(before) and _DENIAL.match(left) and _PRESENT.match(ahead))
        ):
            yield left
            start, before = joint.end(), left
    yield plain[start:]
    for aside in _ASIDE.finditer(sentence):
        yield aside[0].strip("(), ")


def _both_assert(left: str, ahead: str, rest: str) -> bool:
    """Whether both sides of a joint have a predicate.

    "There is no" opens a list, which only a predicate in the very next part ends.
    """
    if not _PREDICATE.search(left):
        return False
    opens_list = _THERE.search(left) and not _VERB.search(left)
    return bool(_PREDICATE.search(ahead if opens_list else rest))
