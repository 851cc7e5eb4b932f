"""DICOM files in other transfer syntaxes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

NATIVE = {"implicit": ImplicitVRLittleEndian, "big": ExplicitVRBigEndian, "deflated": DeflatedExplicitVRLittleEndian}
ITK = {"jpeg": "JPEG", "jpeg-2000": "JPEG2000"}  # lossless, both
SYNTAXES = ("explicit", *NATIVE, "rle", *ITK)


def transcode(file: Path, syntax: str) -> None:
    """Rewrite a file of explicit little endian in one of `SYNTAXES`; what it says of its pixels stays."""
    if syntax == "explicit":
        return
    dataset = pydicom.dcmread(file)
    if syntax in NATIVE:
        if syntax == "big":
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = NATIVE[syntax]
        pydicom.dcmwrite(
            file, dataset, implicit_vr=syntax == "implicit", little_endian=syntax != "big", enforce_file_format=True
        )
        return
    if syntax == "rle":
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        encoded = _encoded(dataset.pixel_array, ITK[syntax])
        dataset.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        dataset.PixelData = encoded.PixelData
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(file, enforce_file_format=True)


def _encoded(stored: np.ndarray, compressor: str) -> pydicom.Dataset:
    writer = sitk.ImageFileWriter()
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    with tempfile.TemporaryDirectory() as folder:
        writer.SetFileName(f"{folder}/a.dcm")
        writer.Execute(sitk.GetImageFromArray(stored))
        return pydicom.dcmread(f"{folder}/a.dcm")
