"""Ray in a test process, kept from one file of tests to the next."""

from __future__ import annotations

from contextlib import ExitStack

from brgsa_platform.runtime import session


class SharedRay:
    """Starts Ray where no fitting one runs: a start takes some eight seconds of a core, and its workers import anew."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._cpus = 0

    def start(self, num_cpus: int) -> None:
        """Ray on so many logical CPUs: the one that runs, or another in its place."""
        session.quiet_environment()
        import ray

        if num_cpus != self._cpus or not ray.is_initialized():
            self.stop()
            self._running.enter_context(session.ray_session(num_cpus=num_cpus))
            self._cpus = num_cpus

    def stop(self) -> None:
        self._running.close()
        self._cpus = 0
