"""Ray in a test process, kept from one file of tests to the next."""

from __future__ import annotations

from contextlib import ExitStack

from brgsa_platform.runtime import session

ATTEMPTS = 4  # Ray gives its own processes half a minute to start, which is too little on a machine at a load of 40


class SharedRay:
    """Starts Ray where no fitting one runs: a start takes some eight seconds of a core, and its workers import anew."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._cpus = 0

    @property
    def address(self) -> str:
        """The running Ray's, for RAY_ADDRESS of a process that joins it."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def start(self, num_cpus: int) -> None:
        """Ray on so many logical CPUs: the one that runs, or another in its place."""
        session.quiet_environment()
        import ray

        if num_cpus == self._cpus and ray.is_initialized():
            return
        self.stop()
        for attempt in range(ATTEMPTS):
            try:
                self._running.enter_context(session.ray_session(num_cpus=num_cpus))
                break
            except Exception as error:
                if attempt == ATTEMPTS - 1 or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
        self._cpus = num_cpus

    def stop(self) -> None:
        """End the Ray that runs, if one does."""
        self._running.close()
        self._cpus = 0
