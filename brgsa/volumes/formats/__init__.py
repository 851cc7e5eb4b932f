"""Image files of one volume each: NIfTI and Analyze, NRRD, MetaImage, RAD-ChestCT's `.npz`."""

from brgsa.volumes.formats.files import read_stored

__all__ = ["read_stored"]
