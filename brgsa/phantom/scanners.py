"""Rows of the metadata table, with CT-RATE's columns and plausible values of its scanners."""

from __future__ import annotations

from brgsa.phantom.cases import Case, Reconstruction

METADATA: tuple[str, ...] = (
    "VolumeName",
    "Manufacturer",
    "SeriesDescription",
    "ManufacturerModelName",
    "PatientSex",
    "PatientAge",
    "ReconstructionDiameter",
    "DistanceSourceToDetector",
    "DistanceSourceToPatient",
    "GantryDetectorTilt",
    "TableHeight",
    "RotationDirection",
    "ExposureTime",
    "XRayTubeCurrent",
    "Exposure",
    "FilterType",
    "GeneratorPower",
    "FocalSpots",
    "ConvolutionKernel",
    "PatientPosition",
    "RevolutionTime",
    "SingleCollimationWidth",
    "TotalCollimationWidth",
    "TableSpeed",
    "TableFeedPerRotation",
    "SpiralPitchFactor",
    "DataCollectionCenterPatient",
    "ReconstructionTargetCenterPatient",
    "ExposureModulationType",
    "CTDIvol",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceLocation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "XYSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "NumberofSlices",
    "ZSpacing",
    "StudyDate",
)
# model -> (manufacturer, soft kernel, sharp kernel, RescaleIntercept)
_MODELS: dict[str, tuple[str, str, str, int]] = {
    "iCT 256": ("Philips", "B", "YA", -1024),
    "Brilliance Big Bore": ("Philips", "B", "L", -1024),
    "SOMATOM go.All": ("Siemens Healthineers", "['Br40f', '3']", "['Br60f', '3']", -8192),
    "SOMATOM Force": ("SIEMENS", "['Br40d', '3']", "['Bl57d', '3']", -1024),
}


def intercept(grid: Reconstruction) -> int:
    """RescaleIntercept of the scanner, in HU; the slope is 1."""
    return _MODELS[grid.scanner][3]


def metadata(case: Case, index: int, name: str) -> tuple[str, ...]:
    """The table's row of one volume, in the order of METADATA; columns that a phantom has no value for are empty."""
    grid = case.reconstructions[index]
    maker, soft, sharp, _ = _MODELS[grid.scanner]
    first = [round(-(n - 1) / 2 * s, 3) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    known = {
        "VolumeName": name,
        "Manufacturer": maker,
        "ManufacturerModelName": grid.scanner,
        "PatientSex": "F" if case.female else "M",
        "PatientAge": f"{case.age:03d}Y",
        "ReconstructionDiameter": round(grid.shape[0] * grid.spacing[0]),
        "GantryDetectorTilt": 0,
        "RotationDirection": "CW",
        "ConvolutionKernel": soft if grid.kernel == "soft" else sharp,
        "PatientPosition": "HFS",
        "ImagePositionPatient": first,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceLocation": first[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": grid.shape[1],
        "Columns": grid.shape[0],
        "XYSpacing": [grid.spacing[0], grid.spacing[1]],
        "RescaleIntercept": intercept(grid),
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "NumberofSlices": grid.shape[2],
        "ZSpacing": grid.spacing[2],
        "StudyDate": f"2021{1 + case.seed % 12:02d}{1 + case.seed % 28:02d}",
    }
    return tuple(str(known.get(column, "")) for column in METADATA)
