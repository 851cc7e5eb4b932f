"""How the slices of one series lie in space and time: which of them make one volume, and which none.

A volume's slices agree in everything that makes one scan: patient, study, series, acquisition, time, orientation, spacing,
kernel, kind of image. Those that differ are volumes of their own where they are whole, or refused with what differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from brgsa.volumes.checks.geometry import ALONG, LARGEST_SHEAR
from brgsa.volumes.dicom.headers import ACQUISITION, TRAITS, SliceHeader
from brgsa.volumes.dicom.slices import Refusal, may_be_projected
from brgsa.volumes.stored import Doubt

FEWEST_SLICES = 8
SAME_POSITION = 1e-3  # mm
LARGEST_GAP = 1.5  # times the median step
UNEVEN, UNEVEN_SHARE = 0.11, 0.1  # mm, and share of the median step, whichever is more: positions are rounded to 0.1 mm
DAY = 86400.0  # seconds
PAUSE = 3.0  # times the median step in time
ORDERED = 0.9  # correlation of time and position, from which slices count as taken in their order
THICK = (
    3.0  # times the step, from which slices are rather slabs of others: scanners overlap them by half, or by two thirds
)
ASIDE = 1.0  # mm that a slice may lie off the straight line of the others


class Stack(NamedTuple):
    """Slices that belong together.

    Attributes:
        slices: in order along their normal, where they are a volume.
        refusal: why they are no volume; None where they are one.
        doubts: what is odd in a volume.
    """

    slices: Sequence[SliceHeader]
    refusal: Refusal | None = None
    doubts: tuple[Doubt, ...] = ()


def stacks(headers: Sequence[SliceHeader]) -> list[Stack]:
    """The volumes that slices of one series make, and the rest with its reasons; every slice is in one of them."""
    broken = len({h.file for h in headers if not h.whole})
    if broken:  # what they would have had in common with the others is not known
        files = len({h.file for h in headers})
        reason = f"{broken} of its {files} files are cut short; copy the series again."
        return [Stack(headers, Refusal("file-damaged", reason, broken))]
    found = [stack for coarse in _parts(headers, _without(ACQUISITION)) for stack in _acquisitions(coarse)]
    if len(found) > 1 and all(stack.refusal for stack in found):
        largest = max(found, key=lambda stack: len(stack.slices))
        names = _differences(_parts(headers, TRAITS)) or ["AcquisitionTime"]
        reason = (
            f"its slices differ in {', '.join(names)}, and no part of them is a volume ({_why(largest)}); split it."
        )
        return [Stack(headers, Refusal("slices-differ", reason, names[0], names[0]))]
    return found


def _why(stack: Stack) -> str:
    return stack.refusal.reason.partition(";")[0].rstrip(".") if stack.refusal else ""


def _without(names: Iterable[str]) -> list[str]:
    return [name for name in TRAITS if name not in names]


def _acquisitions(headers: Sequence[SliceHeader]) -> list[Stack]:
    """The volumes of slices that agree in all but their acquisition.

    A scan taken step by step may count an acquisition for each position of the table. Those are one volume where none of them
    is as long as a chest and they follow each other without a gap.
    """
    parts = _parts(headers, TRAITS)
    if len(parts) == 1:
        return _phases(headers)
    if all(_located(part) for part in parts):
        reaches = sorted(_reach(part) for part in parts)
        apart = all(low > high for (_, high), (low, _) in pairwise(reaches))
        short = all(high - low < ALONG[0] for low, high in reaches)
        if apart and short and (joined := _stack(headers)).refusal is None:
            return [joined._replace(doubts=(*joined.doubts, Doubt("acquisitions:joined", str(len(parts)))))]
    return [stack for part in parts for stack in _phases(part)]


def _phases(headers: Sequence[SliceHeader]) -> list[Stack]:
    """Slices that only the time of their acquisition tells apart: a sweep over the patient each."""
    headers = _past_midnight(headers)
    whole = _stack(headers)
    if not _located(headers):
        return [whole]
    sweeps = _sweeps(headers)
    if len(sweeps) > 1:
        for parts in (_at_pauses(headers), sweeps):
            split = [_stack(part) for part in parts]
            if len(split) > 1 and all(stack.refusal is None for stack in split):
                return split
        if whole.refusal is None:
            return [_disordered(whole)]
    stacked = _numbered_stacks(whole) if whole.refusal is None else 1
    if stacked > 1:
        reason = (
            f"its slices are {stacked} stacks by their InstanceNumber, woven into each other by their positions; "
            "split it into series of one acquisition."
        )
        return [Stack(headers, Refusal("slices-interleaved", reason, stacked, "InstanceNumber"))]
    return [whole]


def _parts(headers: Sequence[SliceHeader], names: Iterable[str]) -> list[list[SliceHeader]]:
    """The slices in groups that agree in geometry and in these traits."""
    names = list(names)
    parts: list[list[SliceHeader]] = []
    alike: dict[tuple[str, ...], list[list[SliceHeader]]] = {}
    for header in headers:
        # Numbers take a thousand times as long to compare as text: only where all text agrees.
        same = alike.setdefault(tuple(header.traits[name] for name in names), [])
        part = next((part for part in same if not _differ(part[0], header, ())), None)
        if part is None:
            part = []
            parts.append(part)
            same.append(part)
        part.append(header)
    return parts


def _differ(a: SliceHeader, b: SliceHeader, names: Iterable[str]) -> list[str]:
    """The tags in which two slices differ so much that they are not of one volume."""
    return [
        *(["Rows and Columns"] if a.matrix != b.matrix else []),
        *(["PixelSpacing"] if _far(a.spacing, b.spacing, relative=1e-3) else []),
        *(["ImageOrientationPatient"] if _far(a.orientation, b.orientation, absolute=1e-3) else []),
        *(name for name in names if a.traits[name] != b.traits[name]),
    ]


def _far(a: Sequence[float] | None, b: Sequence[float] | None, relative: float = 0.0, absolute: float = 0.0) -> bool:
    if a is None or b is None:
        return False  # a missing tag is not another value; `_incomplete` refuses it
    return a != b and not np.allclose(a, b, rtol=relative, atol=absolute)


def _differences(parts: Sequence[Sequence[SliceHeader]]) -> list[str]:
    names = [name for part in parts[1:] for name in _differ(parts[0][0], part[0], TRAITS)]
    return list(dict.fromkeys(names))


def _stack(headers: Sequence[SliceHeader]) -> Stack:
    """Slices that agree in all traits, as a volume or with the reason why they are none."""
    refusal = _incomplete(headers) or _impossible(headers[0])
    if refusal is not None:
        return Stack(headers, refusal)
    normal = normal_of(headers[0])
    ordered = sorted(headers, key=lambda h: float(np.dot(h.position or (), normal)))
    positions = np.array([h.position for h in ordered])
    refusal = _not_even(positions, normal)
    return Stack(ordered, refusal, () if refusal else _doubts(ordered))


def _incomplete(headers: Sequence[SliceHeader]) -> Refusal | None:
    """Why slices do not hold all of a volume; None where they do."""
    if len(headers) < FEWEST_SLICES:
        count = len(headers)
        reason = f"it has only {count} slices; give a series of at least {FEWEST_SLICES}."
        return Refusal("too-few-slices", reason, count)
    faults = {name: text for h in headers for name, text in h.faults}
    if bits := faults.get("HighBit"):
        reason = f"its stored values do not lie in the lowest bits (HighBit {bits}); export the series again."
        return Refusal("bits-shifted", reason, bits, "HighBit")
    for name, values in (
        ("PixelSpacing", [h.spacing for h in headers]),
        ("ImageOrientationPatient", [h.orientation for h in headers]),
        ("ImagePositionPatient", [h.position for h in headers]),
        ("RescaleSlope", [h.rescale for h in headers]),
        ("RescaleIntercept", [h.rescale for h in headers]),
    ):
        if name in faults:
            reason = f"its {name} is {faults[name]!r}, which is no number as DICOM writes it; mend the tag."
            return Refusal("tag-unreadable", reason, faults[name], name)
        rescale_of_none = name.startswith("Rescale") and all(value is None for value in values)
        if any(value is None for value in values) and not rescale_of_none:
            return Refusal("tag-missing", f"its slices lack {name}; export the series again, with it.", name, name)
    return None


def _impossible(first: SliceHeader) -> Refusal | None:
    """Why a slice cannot lie as its header says; None where it can."""
    orientation, spacing = np.array(first.orientation), np.array(first.spacing)
    row, column = orientation[:3], orientation[3:]
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.02):
        reason = "its ImageOrientationPatient is no pair of directions; export the series again."
        return Refusal("orientation-impossible", reason, first.orientation, "ImageOrientationPatient")
    if (spacing <= 0).any():
        numbers = "×".join(f"{s:g}" for s in spacing)
        reason = f"its PixelSpacing is {numbers} mm, which cannot be; export the series again."
        return Refusal("spacing-impossible", reason, numbers, "PixelSpacing")
    return None


def _not_even(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> Refusal | None:
    """Why slices at these positions, mm (n, 3), in order, are not evenly stacked; None where they are."""
    steps = np.diff(positions @ normal)
    if (steps < SAME_POSITION).any():
        count = int((steps < SAME_POSITION).sum())
        return Refusal(
            "slices-overlap", f"{count} of its slices are where another one is; keep one image a position.", count
        )
    step = float(np.median(steps))
    if steps.max() > LARGEST_GAP * step:
        return Refusal(
            "slices-missing",
            f"slices are missing: a gap of {steps.max():.4g} mm where others are {step:.4g} mm apart; copy it again.",
            float(steps.max()),
        )
    if np.abs(steps - step).max() > max(UNEVEN, UNEVEN_SHARE * step):
        return Refusal(
            "slices-uneven",
            f"its slices are {steps.min():.4g} to {steps.max():.4g} mm apart; export a series of even spacing.",
            (float(steps.min()), float(steps.max())),
        )
    line = np.linspace(positions[0], positions[-1], len(positions))
    off = positions - line
    aside = float(np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max())
    if aside > ASIDE:
        reason = f"a slice lies {aside:.3g} mm aside of the others' line; export a series of slices in one line."
        return Refusal("slices-aside", reason, round(aside, 2))
    return None


def _doubts(ordered: Sequence[SliceHeader]) -> tuple[Doubt, ...]:
    rescales = {h.rescale for h in ordered}
    thickness, step = _thickness(ordered[0]), geometry_of(ordered)[0][2]
    return (
        *([Doubt("projection:described")] if may_be_projected(ordered[0]) else []),
        *([Doubt("slices:thick", f"{thickness:g} mm every {step:.3g} mm")] if thickness > THICK * step else []),
        *([Doubt("rescale:varies", f"{len(rescales)} rescales")] if len(rescales) > 1 else []),
        *([Doubt("header:decimal-comma")] if any(h.commas for h in ordered) else []),
        *([Doubt("hu:unstated")] if ordered[0].traits["RescaleType"].upper() == "US" else []),
    )


def _thickness(header: SliceHeader) -> float:
    """SliceThickness in mm; 0 where it is not given, or no number."""
    try:
        return float(header.traits["SliceThickness"].replace(",", "."))
    except ValueError:
        return 0.0


# --- order in time ----------------------------------------------------------------------------------------------------


def _past_midnight(headers: Sequence[SliceHeader]) -> Sequence[SliceHeader]:
    """The slices with times that go on past midnight, where they give no day and lie at both ends of one."""
    times = [h.time for h in headers if h.time is not None]
    if not times or max(times) >= DAY or max(times) - min(times) < DAY / 2:
        return headers
    return [replace(h, time=h.time + DAY) if h.time is not None and h.time < DAY / 2 else h for h in headers]


def _sweeps(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """The slices by the sweeps of the scanner: a new one begins where a slice lies among those already taken."""
    if any(h.time is None for h in headers):
        return [list(headers)]
    blocks: dict[float, list[SliceHeader]] = {}
    for header in headers:
        blocks.setdefault(header.time or 0.0, []).append(header)
    sweeps: list[list[SliceHeader]] = []
    low = high = 0.0
    for _, block in sorted(blocks.items()):
        first, last = _reach(block)
        if not sweeps or (first <= high + SAME_POSITION and last >= low - SAME_POSITION):
            sweeps.append([])
            low, high = first, last
        sweeps[-1] += block
        low, high = min(low, first), max(high, last)
    return sweeps


def _at_pauses(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """The slices parted at each pause in the times of their acquisition."""
    ordered = sorted(headers, key=lambda h: h.time or 0.0)
    steps = np.diff([h.time or 0.0 for h in ordered])
    pauses = np.flatnonzero(steps > PAUSE * max(float(np.median(steps)), 1e-3)) + 1
    ends = [0, *pauses.tolist(), len(ordered)]
    return [ordered[start:end] for start, end in pairwise(ends)]


def _disordered(stack: Stack) -> Stack:
    """A whole stack whose times turn back: flagged where they still follow the positions by and large, or else refused."""
    times = np.array([h.time or 0.0 for h in stack.slices])
    ranks = np.unique(times, return_inverse=True)[1]
    follows = abs(float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]))
    if follows >= ORDERED:
        return stack._replace(doubts=(*stack.doubts, Doubt("times:disordered", f"correlation {follows:.2f}")))
    reason = (
        "its slices were acquired in another order than they lie in, as where two scans are woven into each other; split it "
        "into series of one acquisition."
    )
    return Stack(stack.slices, Refusal("slices-interleaved", reason, round(follows, 2), "AcquisitionTime"))


def _numbered_stacks(stack: Stack) -> int:
    """How many stacks a whole one is by its InstanceNumbers: as each number occurs more than once, or as they turn back."""
    times = Counter(h.number for h in stack.slices)
    if len(times) >= FEWEST_SLICES and min(times.values()) > 1:
        return max(times.values())
    runs = _runs(stack.slices)
    return len(runs) if all(_stack(run).refusal is None for run in runs) else 1


def _runs(ordered: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Slices in order of position, parted where their InstanceNumber turns back; one run where the numbers follow the order."""
    numbers = [h.number for h in ordered]
    if None in numbers or len(set(numbers)) < len(numbers):
        return [list(ordered)]
    places = [place for _, place in sorted((number or 0, place) for place, number in enumerate(numbers))]
    runs = [[places[0]]]
    for before, place in pairwise(places):
        run = runs[-1]
        if len(run) > 1 and (place > before) != (run[1] > run[0]):
            runs.append([])
        runs[-1].append(place)
    return [[ordered[place] for place in run] for run in runs]


def _located(headers: Sequence[SliceHeader]) -> bool:
    return all(h.position is not None and h.orientation is not None for h in headers)


def _reach(headers: Sequence[SliceHeader]) -> tuple[float, float]:
    """The lowest and highest depth along the normal, mm."""
    depths = np.array([h.position for h in headers]) @ normal_of(headers[0])
    return float(depths.min()), float(depths.max())


# --- geometry ---------------------------------------------------------------------------------------------------------


def normal_of(header: SliceHeader) -> npt.NDArray[np.float64]:
    """The slice's normal: row direction times column direction."""
    orientation = np.array(header.orientation)
    normal: npt.NDArray[np.float64] = np.cross(orientation[:3], orientation[3:])
    return normal


def geometry_of(ordered: Sequence[SliceHeader]) -> tuple[tuple[float, float, float], npt.NDArray[np.float64]]:
    """Spacing (mm) and directions (3, 3) of the axes along a row, along a column, and from slice to slice.

    The third axis is askew where the gantry was tilted.
    """
    first, last = ordered[0], ordered[-1]
    orientation, spacing, normal = np.array(first.orientation), first.spacing or (), normal_of(first)
    way = (np.array(last.position) - np.array(first.position)) / (len(ordered) - 1)
    angle = np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1, 1)))
    if angle <= LARGEST_SHEAR:  # positions are rounded
        way = normal * (way @ normal)
    directions = np.stack([orientation[:3], orientation[3:], way], axis=1)
    # DICOM gives the distance between rows first; along a row (axis i) the distance is that between columns.
    return (spacing[1], spacing[0], float(np.linalg.norm(way))), directions / np.linalg.norm(directions, axis=0)
