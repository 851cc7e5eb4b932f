"""Which volumes the tasks of a run have taken up and finished, in one Ray actor that outlives any of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self


class Entries:
    """The actor's state."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._finished: set[str] = set()

    def take_up(self, volume_id: str) -> int:
        before = self._taken[volume_id]
        self._taken[volume_id] += 1
        return before

    def finished(self, volume_id: str) -> None:
        del self._taken[volume_id]
        self._finished.add(volume_id)  # once, though a task that is run again finishes it again

    def done(self) -> int:
        return len(self._finished)


@dataclass(frozen=True)
class SharedJournal:
    """A handle on it for tasks and driver; see `writer.Journal`."""

    actor: Any

    @classmethod
    def start(cls) -> Self:
        import ray

        return cls(ray.remote(num_cpus=0)(Entries).remote())

    def take_up(self, volume_id: str) -> int:
        import ray

        return int(ray.get(self.actor.take_up.remote(volume_id)))

    def finished(self, volume_id: str) -> None:
        self.actor.finished.remote(volume_id)

    def done(self) -> int:
        import ray

        return int(ray.get(self.actor.done.remote()))
