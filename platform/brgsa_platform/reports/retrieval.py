"""Examples of retrieval: volumes whose own text is found best, middling and worst, and what is found in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.reports.runs import Evaluated

Texts = dict[str, str]


@dataclass(frozen=True)
class Found:
    """A text that comes first for a volume.

    Attributes:
        shows: the abnormalities of its volume.
        is_own: whether it is the text of the volume itself.
        text, volume: only where a user asks for texts.
    """

    shows: str
    is_own: bool
    text: str = ""
    volume: str = ""


@dataclass(frozen=True)
class Example:
    """A volume, where its text stands among all (1 is first) and where it stands for its text, and what comes first."""

    shows: str
    text_rank: int
    volume_rank: int
    first: list[Found]
    text: str = ""
    volume: str = ""


def examples(run: Evaluated, texts: Texts | None) -> list[Example]:
    """The examples that an evaluation has kept, the best found first.

    Args:
        texts: by volume id; with them the examples have texts and ids, else ranks and abnormalities alone.
    """
    if run.alignment is None:
        return []
    ids, ranks = run.alignment.volume_ids, run.alignment.ranks
    place = {int(row): i for i, row in enumerate(ranks.rows)}

    def named(row: int) -> dict[str, Any]:
        return {
            "shows": _shows(run, ids[row]),
            **({} if texts is None else {"text": texts.get(ids[row], ""), "volume": ids[row]}),
        }

    made = [
        Example(
            text_rank=int(ranks.of_text[place[row]]) + 1,
            volume_rank=int(ranks.of_volume[place[row]]) + 1,
            first=[
                Found(**named(other), is_own=k == 0 and not ranks.of_text[place[row]]) for k, other in enumerate(first)
            ],
            **named(row),
        )
        for row, first in ranks.first.items()
    ]
    return sorted(made, key=lambda example: example.text_rank)


def texts_of(run: Evaluated) -> tuple[Texts | None, str]:
    """The texts that the evaluation compared volumes with, and why they are missing."""
    from brgsa_platform.store.store import Store

    store = run.origin.get("store")
    if run.alignment is None or not store:
        return None, "the evaluation has none"
    try:
        opened = Store.open(store)
        if opened.fingerprint != run.told["data"]:
            return None, "the store holds other data now"
        return opened.texts(run.origin.get("style") or "report"), ""
    except UserError as error:
        return None, f"the store is not at hand ({error.code})"


def _shows(run: Evaluated, volume: str) -> str:
    """The abnormalities of a volume, in words."""
    if run.scored is None:
        return ""
    row = run.scored.volume_ids.index(volume)
    names = [name for name, label in zip(run.scored.names, run.scored.labels[row], strict=True) if label == 1]
    return ", ".join(names) or "no abnormality"
