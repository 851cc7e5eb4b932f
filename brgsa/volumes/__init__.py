"""CT volumes: from files to Hounsfield units on one grid, and their stored form."""

from brgsa.volumes.codec import decode, encode
from brgsa.volumes.dicom import Series, SeveralSeries, folders_below, list_series
from brgsa.volumes.errors import VolumeError
from brgsa.volumes.geometry import Geometry, standardize
from brgsa.volumes.quality_flags import flag_name, quality_warnings
from brgsa.volumes.readers import read_volume
from brgsa.volumes.volume import Volume

__all__ = [
    "Geometry",
    "Series",
    "SeveralSeries",
    "Volume",
    "VolumeError",
    "decode",
    "encode",
    "flag_name",
    "folders_below",
    "list_series",
    "quality_warnings",
    "read_volume",
    "standardize",
]
