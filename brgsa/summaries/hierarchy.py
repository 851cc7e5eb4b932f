"""Which abnormalities are known, under which other names, what each implies, and where it lies (`open_vocabulary.yaml`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from brgsa.labels import LABEL_SETS
from brgsa.summaries.vocabulary import listed, open_vocabulary, read_yaml, vocabulary

ELSEWHERE = "elsewhere"


@cache
def known_names() -> tuple[str, ...]:
    """Every abnormality of the open vocabulary, the 33 of CT-RATE and CT-RATE-LT first, in order; no aliases."""
    return tuple(entry.name for entry in open_vocabulary().entries)


@cache
def aliases() -> dict[str, str]:
    """Another name of an abnormality → its name in `known_names`."""
    return dict(read_yaml("open_vocabulary.yaml")["aliases"])


@cache
def _by_spelling() -> dict[str, str]:
    return {name.lower(): name for name in known_names()} | {a.lower(): name for a, name in aliases().items()}


def canonical(name: str) -> str | None:
    """The name in `known_names` of an abnormality in any case or under an alias; None where it is unknown."""
    return _by_spelling().get(" ".join(name.lower().replace("-", " ").split()))


@cache
def ancestors(name: str) -> frozenset[str]:
    """What an abnormality implies: its parents, and theirs."""
    parents = listed(read_yaml("open_vocabulary.yaml")["parents"].get(name, ""))
    return frozenset(parents).union(*(ancestors(parent) for parent in parents))


def without_parents(names: Iterable[str]) -> list[str]:
    """The names that no other of them implies, in their order."""
    names = list(names)
    implied = frozenset[str]().union(*(ancestors(name) for name in names))
    return [name for name in names if name not in implied]


@cache
def place_of(name: str) -> str:
    """Where an abnormality lies, as a summary says it ("the lungs"), or `ELSEWHERE`."""
    return _places().get(name, ELSEWHERE)


@cache
def _places() -> dict[str, str]:
    return {
        name: place for place, names in read_yaml("open_vocabulary.yaml")["anatomy"].items() for name in listed(names)
    }


@cache
def place_order() -> tuple[str, ...]:
    """The places of `place_of` in the order in which a summary names them."""
    return (*read_yaml("open_vocabulary.yaml")["anatomy"], ELSEWHERE)


@cache
def named_set(name: str) -> tuple[str, ...] | None:
    """The abnormalities of a set by its name: "default" (CT-RATE's and CT-RATE-LT's 33), "all", or one of `LABEL_SETS`.

    None where there is no such set. RAD-ChestCT's "Calcification" is the open vocabulary's.
    """
    if name == "default":
        return tuple(entry.name for entry in vocabulary().entries)
    return known_names() if name == "all" else LABEL_SETS.get(name)
