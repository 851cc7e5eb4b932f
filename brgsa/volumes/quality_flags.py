"""Quality flags: the flags of a volume that cast doubt on it, and what each means."""

from __future__ import annotations

from collections.abc import Iterable

QUALITY_FLAGS = {
    "rescale:unsure": "The voxels do not tell whether the metadata table's rescale has been applied: as they are and "
    "rescaled they look equally like a chest in HU, or equally little.",
    "rescale:twice": "The metadata table's rescale seems to have been applied twice: with one taken back, air and soft "
    "tissue have the values that they should have.",
    "hu:implausible": "Air is not near -1000 HU or soft tissue not near 0 to 80 HU, so these may not be Hounsfield units.",
    "spacing:disagrees": "The header's voxel spacing differs from the metadata table's.",
    "release:mixed": "The geometry is that of one release of CT-RATE and the voxels are those of the other: a header "
    "without spacing belongs to values that still need the rescale, a header with spacing belongs to HU.",
    "geometry:assumed": "Nothing gives the spacing and the orientation of this .npz; RAD-ChestCT's (0.8 mm, from head to "
    "feet) were taken.",
    "orientation:assumed": "Neither header nor table gives the orientation of the axes in the patient; the usual one was "
    "taken.",
}


def quality_warnings(flags: Iterable[str]) -> list[str]:
    """One sentence for each flag that makes a volume doubtful; flags that only record an origin give none.

    `brgsa prepare --strict` refuses a volume with any warning.
    """
    return [QUALITY_FLAGS[flag] for flag in flags if flag in QUALITY_FLAGS]
