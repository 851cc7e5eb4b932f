"""What the flags of a volume cast doubt on, in words."""

from __future__ import annotations

from collections.abc import Iterable

DOUBTS = {
    "rescale:unsure": "The voxels do not tell whether the metadata table's rescale has been applied: as they are and "
    "rescaled they look equally like a chest in HU, or equally little.",
    "rescale:twice": "The metadata table's rescale seems to have been applied twice: with one taken back, air and soft "
    "tissue lie where they belong.",
    "hu:implausible": "Air is not near -1000 HU or soft tissue not near 0 to 80 HU, so these may not be Hounsfield units.",
    "spacing:disagrees": "The header's voxel spacing is not the metadata table's.",
    "release:mixed": "Geometry says one release of CT-RATE and the voxels the other: a header without spacing belongs to "
    "values that are yet to be rescaled, a header with spacing to HU.",
    "geometry:assumed": "Nothing gives the spacing and the orientation of this .npz; RAD-ChestCT's (0.8 mm, from head to "
    "feet) were taken.",
    "orientation:assumed": "Neither header nor table says how the axes lie in the patient; the usual order was taken.",
}


def doubts(flags: Iterable[str]) -> list[str]:
    """One sentence for each flag that makes a volume doubtful; none for flags that only record where something came from.

    `brgsa prepare --strict` refuses a volume with any.
    """
    return [DOUBTS[flag] for flag in flags if flag in DOUBTS]
