"""The scans that lie open on the page: in memory, few, and gone with the process."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.volumes.errors import VolumeError
from brgsa_platform.serving.page.pictures import heat_png, slice_png
from brgsa_platform.serving.scorer import ScanOptions, Scorer, Seen, by_rank

MOST_OPEN = 3
MOST_MAPS = 16  # of a scan

HeatMap = npt.NDArray[np.float32]


@dataclass
class OpenScan:
    """A scan and the maps made of it, each of a prompt's support times the model's opinion."""

    seen: Seen
    maps: OrderedDict[str, HeatMap] = field(default_factory=OrderedDict)


class Desk:
    """A model, and the last few scans that it was shown."""

    def __init__(self, scorer: Scorer, options: ScanOptions = ScanOptions()) -> None:
        self.scorer = scorer
        self._options = options
        self._scans: OrderedDict[str, OpenScan] = OrderedDict()
        self._lock = threading.Lock()  # one scan at a time: each takes all cores, and much memory while it is read

    def open(self, path: Path) -> dict[str, Any]:
        """Read a scan and keep it; the oldest gives way.

        Raises:
            UserError: it cannot be used; no message names the file.
        """
        with self._lock:
            try:
                seen = self.scorer.read(path, self._options)
            except UserError as error:
                raise UserError(_sentence(error), code=error.code, field=error.field) from error
            key = secrets.token_urlsafe(16)
            self._scans[key] = OpenScan(seen)
            while len(self._scans) > MOST_OPEN:
                self._scans.popitem(last=False)
            x, y, z = seen.hu.shape
            mm = self.scorer.geometry.spacing
            return {
                "id": key,
                "slices": z,
                "width_mm": x * mm[0],
                "height_mm": y * mm[1],
                "cautions": seen.warnings,
            }

    def close(self, key: str) -> None:
        """Forget a scan."""
        self._scans.pop(key, None)

    def scores(self, key: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Each prompt's score, percentile and probability, as `predict` ranks them; without prompts those of the labels."""
        scan = self._scan(key)
        with self._lock:
            scorer = self.scorer.asking(prompts) if prompts else self.scorer
            return [row._asdict() for row in by_rank(scorer.score(scan.seen))]

    def map(self, key: str, prompt: str) -> dict[str, Any]:
        """Compute where a scan supports a prompt; gives the map's id, the model's opinion, and the map's highest slice."""
        scan = self._scan(key)
        with self._lock:
            ranked, drawn = self.scorer.asking([prompt]).map(scan.seen)
            made = secrets.token_urlsafe(8)
            scan.maps[made] = drawn
            while len(scan.maps) > MOST_MAPS:
                scan.maps.popitem(last=False)
        peak = int(np.unravel_index(int(drawn.argmax()), drawn.shape)[2]) if drawn.any() else None
        return {"map": made, "opinion": ranked.opinion, "peak": peak}

    def slice(self, key: str, number: int, low: float, high: float) -> bytes:
        """An axial slice as PNG, HU from `low` (black) to `high` (white)."""
        hu = self._scan(key).seen.hu
        return slice_png(hu[:, :, _within(number, hu.shape[2])], low, high)

    def heat(self, key: str, made: str, number: int) -> bytes:
        """A slice of a map as PNG that is laid over the scan's."""
        maps = self._scan(key).maps
        if made not in maps:
            raise _gone("map")
        return heat_png(maps[made][:, :, _within(number, maps[made].shape[2])])

    def _scan(self, key: str) -> OpenScan:
        scan = self._scans.get(key)
        if scan is None:
            raise _gone("scan")
        return scan


def _sentence(error: UserError) -> str:
    """A refusal in words of the page, which has no options and shows no path."""
    if error.code == "several-series":
        return "The zip holds several CT series: send one of them."
    return f"The scan cannot be used: {error.reason if isinstance(error, VolumeError) else error}"


def _within(number: int, slices: int) -> int:
    return min(max(number, 0), slices - 1)


def _gone(what: str) -> UserError:
    return UserError(f"This {what} is no longer held here: send the scan again.", code="scan-gone", field=what)
