"""DICOM: from folders of slices to volumes."""

from brgsa.volumes.dicom.folders import folders_below
from brgsa.volumes.dicom.headers import SliceHeader, is_dicom
from brgsa.volumes.dicom.series import Series, SeveralSeries, list_series, read_series

__all__ = ["Series", "SeveralSeries", "SliceHeader", "folders_below", "is_dicom", "list_series", "read_series"]
