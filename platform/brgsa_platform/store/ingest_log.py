"""Which volumes the tasks of a run have begun and finished: one Ray actor that outlives any of its workers.

A task that dies leaves the volume that it was reading begun and not finished. So the next try knows how many workers a volume
has killed, and the driver knows how many volumes are done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self


class IngestLog:
    """The log itself, as the actor holds it."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._finished: set[str] = set()

    def begin(self, volume_id: str) -> int:
        """Note that a task begins a volume; gives how many tasks have begun it before and never finished it."""
        deaths = self._begun[volume_id]
        self._begun[volume_id] += 1
        return deaths

    def finish(self, volume_id: str) -> None:
        """Note that a volume is written or refused."""
        del self._begun[volume_id]
        self._finished.add(volume_id)  # a set: a task that runs again finishes its volumes again

    def finished(self) -> int:
        """Volumes written or refused so far."""
        return len(self._finished)


@dataclass(frozen=True)
class IngestLogHandle:
    """The log for tasks and driver: the methods of `IngestLog`, called on the actor.

    Attributes:
        actor: Ray's handle of an `IngestLog`.
    """

    actor: Any

    @classmethod
    def start(cls) -> Self:
        """Start an empty log in the running Ray session. The actor ends with the last handle."""
        import ray

        return cls(ray.remote(num_cpus=0)(IngestLog).remote())

    def begin(self, volume_id: str) -> int:
        """As `IngestLog.begin`; waits for the answer."""
        import ray

        return int(ray.get(self.actor.begin.remote(volume_id)))

    def finish(self, volume_id: str) -> None:
        """As `IngestLog.finish`."""
        self.actor.finish.remote(volume_id)  # without waiting: calls of one task arrive in order

    def finished(self) -> int:
        """As `IngestLog.finished`; waits for the answer."""
        import ray

        return int(ray.get(self.actor.finished.remote()))
