"""Quality flags: the flags of a volume that cast doubt on it, and what each means."""

from __future__ import annotations

from collections.abc import Iterable

QUALITY_FLAGS = {
    "rescale:unsure": "The voxels do not tell whether the metadata table's rescale has been applied: as they are and "
    "rescaled they look equally like a chest in HU, or equally little.",
    "rescale:twice": "The metadata table's rescale seems to have been applied twice: with one taken back, air and soft "
    "tissue have the values that they should have.",
    "rescale:varies": "Its slices differ in slope or intercept; each slice's own was applied.",
    "hu:implausible": "Air is not near -1000 HU or soft tissue not near 0 to 80 HU, so these may not be Hounsfield units.",
    "hu:filled": "One value that is neither air's nor lung's fills a large part of it, as where a mask was laid over the scan.",
    "hu:clipped": "Its values end as those of a display window do, so that bone, contrast or lung look alike.",
    "hu:unstated": "Its RescaleType says that its unit is not specified.",
    "spacing:disagrees": "The header's voxel spacing differs from the metadata table's.",
    "spacing:assumed": "The header gives no voxel spacing, and 1 mm is a guess.",
    "spacing:unit": "Its spacing is exactly 1 mm along unturned axes, which is what programs write that know no geometry.",
    "size:implausible": "No chest CT is of this size: it is 150 to 700 mm wide and deep, and 100 to 2500 mm long.",
    "geometry:contradictory": "The header gives its geometry twice, and differently.",
    "shear:corrected": "Its slices are stacked askew (gantry tilt); they were resampled upright.",
    "shear:implausible": "Its axes are further from right angles than any gantry tilts.",
    "orientation:tilted": "The scan lies askew of the patient's axes, and is not straightened.",
    "release:mixed": "The geometry is that of one release of CT-RATE and the voxels are those of the other: a header "
    "without spacing belongs to values that still need the rescale, a header with spacing belongs to HU.",
    "geometry:assumed": "Nothing gives the spacing and the orientation of this .npz; RAD-ChestCT's (0.8 mm, from head to "
    "feet) were taken.",
    "orientation:assumed": "Neither header nor table gives the orientation of the axes in the patient; the usual one was "
    "taken.",
    "header:decimal-comma": "Its numbers are written with a decimal comma, which DICOM does not know.",
    "projection:described": "Its description names a projection (MIP, MinIP), though it calls itself an original.",
    "slices:blank": "Axial slices of it hold one value, as where some were lost or never filled.",
    "slices:repeated": "Slices of it are exactly those of others, as where each was written twice, or a scan behind itself.",
    "slices:jump": "Two neighbouring slices differ far more than any near them, as where two scans were put end to end or "
    "slices are missing.",
    "voxels:noise": "Neighbouring voxels are not alike, so this is no picture of a chest, though its values may be a chest's.",
    "slices:thick": "Its slices are over three times as thick as they are apart, as those of projections (MIP, MinIP) are.",
    "files:unreadable": "Files beside its slices have no header that can be read, and may be slices of it.",
    "acquisitions:joined": "It is made of several acquisitions that follow each other without a gap.",
    "times:disordered": "The times of its slices do not follow their positions.",
}


def flag_name(flag: str) -> str:
    """A flag without the numbers that stand behind it."""
    return flag.split(" ", 1)[0]


def quality_warnings(flags: Iterable[str]) -> list[str]:
    """One sentence for each flag that makes a volume doubtful; flags that only record an origin give none.

    `brgsa prepare --strict` refuses a volume with any warning.
    """
    return [_sentence(flag) for flag in flags if flag_name(flag) in QUALITY_FLAGS]


def _sentence(flag: str) -> str:
    name, _, numbers = flag.partition(" ")
    sentence = QUALITY_FLAGS[name]
    return f"{sentence.removesuffix('.')} ({numbers})." if numbers else sentence
