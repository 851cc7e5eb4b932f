"""What a language model says of a report: its answer, repaired where it is broken, as single claims."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brgsa.summaries.clauses import sentences, tidy
from brgsa.summaries.english import evidence
from brgsa.summaries.hierarchy import canonical
from brgsa.summaries.reader import Status, read
from brgsa.summaries.styles import Style
from brgsa.summaries.vocabulary import open_vocabulary

# Why an answer cannot be used.
EMPTY, NOT_JSON, REFUSED, FOREIGN = "empty", "not-json", "refused", "foreign"
FAULTS = (EMPTY, NOT_JSON, REFUSED, FOREIGN)
LONGEST_FINDING = 12  # words; a longer one is a sentence

_FENCE = re.compile(r"^\s*```\w*\s*|\s*```\s*$")
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|won't)|as an ai|"
    r"unable to (?:assist|help|comply|provide))\b",
    re.IGNORECASE,
)
_STATUSES = {
    "present": Status.PRESENT, "yes": Status.PRESENT, "positive": Status.PRESENT, "true": Status.PRESENT,
    "absent": Status.ABSENT, "no": Status.ABSENT, "negative": Status.ABSENT, "false": Status.ABSENT, "denied": Status.ABSENT,
    "uncertain": Status.UNCERTAIN, "possible": Status.UNCERTAIN, "probable": Status.UNCERTAIN, "suspected": Status.UNCERTAIN,
}  # fmt: skip
_OPENING = re.compile(r"^(?:there (?:is|are) |presence of |evidence of |an? |the )+", re.IGNORECASE)
_NOTHING = re.compile(
    r"^(?:there is )?(?:no|none|nothing|normal)(?: (?:abnormalit(?:y|ies)|findings?|found|abnormal|acute findings?))*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Claim:
    """One thing that a language model says.

    Attributes:
        text: as a summary would write it.
        findings: abnormality of the open vocabulary → status, of those that it names; empty where it names none of them.
        status: of the whole claim.
        label: the finding's name where the claim is a statement about one; "" in prose.
    """

    text: str
    findings: tuple[tuple[str, Status], ...]
    status: Status
    label: str = ""


@dataclass(frozen=True)
class Claims:
    """What is in an answer: its claims, or the fault for which it has none."""

    claims: tuple[Claim, ...]
    fault: str = ""


def read_answer(content: str, style: Style, cut: bool = False) -> Claims:
    """The claims in an answer.

    Args:
        content: what the model wrote; JSON in a style's schema, or what can be repaired to it.
        cut: the answer ended at the limit of its length, so its last claim may be half of one.
    """
    text = _FENCE.sub("", content).strip()
    if not text:
        return Claims((), EMPTY)
    tree = _tree(text)
    items = _items(tree, style)
    if items is None:
        return Claims((), REFUSED if _REFUSAL.search(text) else NOT_JSON)
    if cut or not _whole(text):
        items = items[:-1]
    found = [claim for item in items for claim in _claims(item, style)]
    kept = tuple(dict.fromkeys(found))
    if kept and sum(_is_foreign(claim.text) for claim in kept) * 2 > len(kept):
        return Claims((), FOREIGN)
    if not kept and _REFUSAL.search(text):
        return Claims((), REFUSED)
    return Claims(kept)


def _is_foreign(text: str) -> bool:
    found = evidence(text)
    return found.is_foreign or (found.words > 0 and found.other >= found.words / 2)


def _tree(text: str) -> Any:
    """The JSON in a text; repaired where it is broken or stands between other words."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    import json_repair

    starts = [place for mark in "{[" if (place := text.find(mark)) >= 0]
    return json_repair.loads(text[min(starts) :]) if starts else None


def _whole(text: str) -> bool:
    return text.rstrip().endswith(("}", "]"))


def _items(tree: Any, style: Style) -> list[Any] | None:
    """The list in an answer, under the schema's key or any; None where there is none."""
    if isinstance(tree, list):
        return tree
    if not isinstance(tree, dict):
        return None
    key = "sentences" if style.is_prose else "statements"
    if style.closed and not style.is_prose and tree and all(isinstance(value, str) for value in tree.values()):
        return [{"finding": name, "status": value} for name, value in tree.items()]
    lists = [value for value in (tree.get(key), *tree.values()) if isinstance(value, list)]
    if lists:
        return lists[0]
    return [tree] if "finding" in tree else None


def _claims(item: Any, style: Style) -> list[Claim]:
    if style.is_prose:
        text = (
            item if isinstance(item, str) else " ".join(str(v) for v in item.values()) if isinstance(item, dict) else ""
        )
        return prose_claims([tidy(text)]) if isinstance(text, str) and text.strip() else []
    if isinstance(item, str):
        return prose_claims([tidy(item)])
    if not isinstance(item, dict):
        return []
    finding, status = item.get("finding") or item.get("name"), str(item.get("status", "present")).strip().lower()
    if not isinstance(finding, str) or status not in _STATUSES:
        return []
    return _statement(tidy(finding).strip(" .,;"), _STATUSES[status])


def _statement(finding: str, status: Status) -> list[Claim]:
    finding = _OPENING.sub("", finding)
    if not finding or _NOTHING.match(finding):
        return []
    if len(finding.split()) > LONGEST_FINDING:
        return prose_claims([finding])
    if name := canonical(finding):
        return [Claim(finding, ((name, status),), status, name)]
    # "No pleural effusion" with the status "absent" denies it once.
    named = read([f"There is {finding}."], open_vocabulary())[0].statuses
    statuses = {name: _under(of_name, status) for name, of_name in named.items()}
    own = _whole_name(finding, statuses)
    return [Claim(finding, tuple(statuses.items()), status, own or finding.lower())]


def _whole_name(finding: str, statuses: dict[str, Status]) -> str:
    """The one name that a finding's words mean, as in "small bilateral pleural effusions"; "" where it means several."""
    return next(iter(statuses)) if len(statuses) == 1 else ""


def _under(said: Status, status: Status) -> Status:
    return said if said is not Status.PRESENT else status


def prose_claims(texts: Sequence[str]) -> list[Claim]:
    """Each sentence of these texts as a claim, with what the rules read in it."""
    out = []
    for one in (one for text in texts for one in sentences(text)):
        statuses = tuple(read([one + "."], open_vocabulary())[0].statuses.items())
        kinds = {status for _, status in statuses}
        status = kinds.pop() if len(kinds) == 1 else Status.PRESENT
        out.append(Claim(one, statuses, status))
    return out
