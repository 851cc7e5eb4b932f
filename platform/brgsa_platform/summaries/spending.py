"""Tokens and their cost: counted for what was answered, held below a limit before more is asked."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 3.5  # of English reports with BPE vocabularies, rounded to the dear side


def estimated_tokens(text: str) -> int:
    """How many tokens a text will be, roughly."""
    return int(len(text) / CHARACTERS_PER_TOKEN) + 1


@dataclass
class Spending:
    """What one run has spent.

    Attributes:
        price: cost of a million tokens sent, and of a million answered.
        limit: what may be spent; None for no limit.
        requests, sent, answered: requests and tokens so far.
        reserved: the most that the requests under way may cost.
    """

    price: tuple[float, float] = (0.0, 0.0)
    limit: float | None = None
    requests: int = 0
    sent: int = 0
    answered: int = 0
    reserved: float = 0.0

    @property
    def cost(self) -> float:
        """What the answered requests cost."""
        return self.cost_of(self.sent, self.answered)

    def cost_of(self, sent: int, answered: int) -> float:
        """The cost of so many tokens."""
        return (sent * self.price[0] + answered * self.price[1]) / 1e6

    def reserve(self, sent: int, answered: int) -> bool:
        """Set aside what a request may cost; False where that would pass the limit."""
        most = self.cost_of(sent, answered)
        if self.limit is not None and self.cost + self.reserved + most > self.limit:
            return False
        self.reserved += most
        return True

    def settle(self, sent: int, answered: int, real_sent: int, real_answered: int) -> None:
        """Replace what was set aside by what was used."""
        self.release(sent, answered)
        self.requests += 1
        self.sent += real_sent
        self.answered += real_answered

    def release(self, sent: int, answered: int) -> None:
        """Give back what was set aside for a request that got no answer."""
        self.reserved = max(0.0, self.reserved - self.cost_of(sent, answered))
