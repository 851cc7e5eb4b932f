"""What answers questions about reports; every backend has one interface and one form of answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from brgsa.errors import UserError
from brgsa.summaries.styles import Style
from brgsa_platform.summaries.spending import Spending


class Answer(NamedTuple):
    """A language model's answer to one question.

    Attributes:
        content: as it was written.
        cut: whether it ended at the limit of its length.
        sent, answered: tokens.
    """

    content: str
    cut: bool = False
    sent: int = 0
    answered: int = 0


NO_ANSWER = Answer("")  # to a question that was refused; it cost nothing and is not kept


class Backend(Protocol):
    """Asks a language model.

    Attributes:
        model: what its answers depend on, for the cache.
        spending: what was spent so far.
    """

    model: str
    spending: Spending

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """The answer to each text, with its number, in the order in which they come.

        Raises:
            UserError: no further answer can be had; those that came before count.
        """
        ...


def named_model(style: Style, what: str) -> str:
    """The model that a style names.

    Args:
        what: how its name is to be given, for the message.

    Raises:
        UserError: it names none ("no-model").
    """
    if not style.model:
        raise UserError(
            f"This style asks a language model: name it with --model, {what}.", code="no-model", field="--model"
        )
    return style.model
