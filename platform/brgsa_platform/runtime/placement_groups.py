"""The placement groups of trials' training workers, released once Tune has stopped the trial around them.

Ray keeps a group until its creator and the whole job are dead (ray issue 54305). Ray Train's own cleaner looks at the state of
its controller through the dashboard, and never finds out where two Rays run on a machine or the dashboard does not answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from brgsa import files
from brgsa.errors import UserError

FILE = "workers.json"
GRACE = 2.0  # seconds until a stopped trial's controller is dead; before, it would start its workers anew
WATCHED = 30.0  # seconds that a stopped trial is looked after: what it still starts is released too


def remember(run: Path) -> None:
    """Write down this worker's placement group in its run's folder; done by rank 0."""
    import ray

    group = ray.util.get_current_placement_group()
    if group is not None:
        files.write_json(run / FILE, {"placement_group": group.id.hex()})


def release(run: Path) -> bool:
    """Remove the placement group of a run's workers where Ray still holds it; gives whether it did."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    if not (run / FILE).is_file():
        return False
    try:
        name = str(files.read_json(run / FILE)["placement_group"])
    except (UserError, KeyError):
        return False
    if placement_group_table().get(name, {}).get("state", "REMOVED") == "REMOVED":
        return False
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
    return True


@dataclass
class PlacementGroupReaper:
    """Releases the workers of trials that have ended; a trial's workers may outlive it for some seconds."""

    _runs: dict[Path, float] = field(default_factory=dict)

    def add(self, run: Path) -> None:
        """Look after the workers of a trial, given its run folder, that has ended or was stopped."""
        self._runs[run] = time.monotonic()

    def sweep(self, grace: float = GRACE) -> None:
        """Release the workers of trials that ended at least `grace` seconds ago."""
        now = time.monotonic()
        for run, ended in list(self._runs.items()):
            if now - ended >= grace:
                release(run)
            if now - ended > WATCHED:
                del self._runs[run]
