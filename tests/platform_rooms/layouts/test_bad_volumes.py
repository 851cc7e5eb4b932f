"""Every layout against the same list of bad volumes: each is refused with a sentence, and none of the others is."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from archives import read_items

from brgsa.volumes import VolumeError, read_volume
from brgsa_platform.layouts import Item
from scans import TABLE, chest, save_dicom, save_nifti

KEY = b"a key of thirty-two bytes, or so"
Spoil = Callable[[Path], object]


def archive(root: Path, layout: str) -> tuple[Path, Path]:
    """An archive of two volumes; gives its source, and the path of the second one's file (its folder, for DICOM)."""
    root.mkdir()
    names = ["train_1_a_1", "train_2_a_1"]
    reports = pd.DataFrame(
        {"VolumeName": [f"{n}.nii.gz" for n in names], "Findings_EN": "Clear.", "Impressions_EN": ""}
    )
    paths = []
    for seed, name in enumerate(names):
        hu = chest(seed=seed)
        match layout:
            case "ct-rate":
                path = root / "train" / name[:7] / name[:9] / f"{name}.nii.gz"
                path.parent.mkdir(parents=True)
                save_nifti(path, (hu + 1024).astype(np.int16), np.eye(4))
            case "rad-chestct":
                path = root / f"{name}.npz"
                save_npz(path, hu.transpose(2, 1, 0)[::-1])
            case "dicom":
                path = root / name
                save_dicom(
                    path, hu, series=f"1.{seed}", PatientID=name, StudyInstanceUID=f"2.{seed}", AccessionNumber=name
                )
            case _:
                path = root / f"{name}.nii.gz"
                save_nifti(path, hu)
        paths.append(path)
    if layout == "ct-rate":
        for folder, table in (("radiology_text_reports", reports), ("metadata", table_of(names))):
            (root / folder).mkdir()
            table.to_csv(root / folder / f"train_{folder.removeprefix('radiology_text_')}.csv", index=False)
    if layout == "rad-chestct":
        metadata = {"NoteAcc_DEID": names, "MRN_DEID": names, "final_spacing": "5"}
        pd.DataFrame(metadata).to_csv(root / "CT_Scan_Metadata.csv", index=False)
    if layout == "manifest":
        table = pd.DataFrame({"volume": [path.name for path in paths], "report": "Clear."})
        table.to_csv(root / "scans.csv", index=False)
        return root / "scans.csv", paths[1]
    return root, paths[1]


def table_of(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame([{"VolumeName": f"{name}.nii.gz", **TABLE} for name in names])


def save_npz(path: Path, array: npt.NDArray[Any], key: str = "ct") -> None:
    np.savez_compressed(path, **{key: array})


def refused(item: Item) -> str:
    """Why the item cannot be used; empty where it can."""
    if item.refused:
        return item.refused
    try:
        read_volume(item.path, item.metadata, item.series)
    except VolumeError as error:
        return error.reason
    return ""


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nifti_spacing(value: float) -> Spoil:
    def spoil(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<f", raw, 88, value)
        path.write_bytes(gzip.compress(raw))

    return spoil


def row(table: str, column: str, value: object) -> Spoil:
    """Write a value in the table's last row; None takes the row away."""

    def spoil(path: Path) -> None:
        (file,) = (p for parent in path.parents for p in parent.glob(table))
        rows = pd.read_csv(file, dtype=str)
        if value is None:
            rows = rows[:-1]
        else:
            rows.loc[rows.index[-1], column] = str(value)
        rows.to_csv(file, index=False)

    return spoil


def slice_of(spoil: Spoil) -> Spoil:
    return lambda folder: spoil(sorted(folder.iterdir())[5])


def again(hu: npt.NDArray[np.int16] | None = None, **tags: Any) -> Spoil:
    """Write the last DICOM series anew."""

    def spoil(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        save_dicom(
            folder,
            chest(seed=1) if hu is None else hu,
            series="1.1",
            **{"PatientID": folder.name, "StudyInstanceUID": "2.1", **tags},
        )

    return spoil


def nan(dtype: type) -> npt.NDArray[Any]:
    array = chest().astype(dtype)
    array[3, 4, 5] = np.nan
    return array


NIFTI: dict[str, tuple[Spoil, str]] = {
    "empty": (empty, r"empty \(0 bytes\)"),
    "cut short": (cut, "cut short"),
    "2-D": (lambda p: save_nifti(p, chest()[:, :, 0]), "2 dimensions"),
    "4-D": (lambda p: save_nifti(p, np.stack([chest()] * 2, -1)), "4 dimensions"),
    "NaN": (lambda p: save_nifti(p, nan(np.float32)), "NaN"),
    "zero spacing": (nifti_spacing(0.0), "spacing of"),
    "negative spacing": (nifti_spacing(-4.0), "spacing of"),
    "gone": (lambda p: p.unlink(), "no such file"),
}
BAD: dict[str, dict[str, tuple[Spoil, str]]] = {
    "manifest": NIFTI,
    "ct-rate": {
        **{name: case for name, case in NIFTI.items() if name != "gone"},  # what is not there is not listed either
        "table's zero spacing": (row("metadata/*.csv", "ZSpacing", 0), "ZSpacing"),
        "table's negative spacing": (row("metadata/*.csv", "ZSpacing", -1.5), "ZSpacing"),
        "no row": (row("metadata/*.csv", "", None), "neither its header nor its metadata row gives a spacing"),
    },
    "rad-chestct": {
        "empty": (empty, r"empty \(0 bytes\)"),
        "cut short": (cut, "cut short"),
        "2-D": (lambda p: save_npz(p, chest()[0]), "2 dimensions"),
        "4-D": (lambda p: save_npz(p, np.stack([chest()] * 2)), "4 dimensions"),
        "NaN": (lambda p: save_npz(p, nan(np.float32)), "NaN"),
        "zero spacing": (row("*Metadata*.csv", "final_spacing", 0), "final_spacing 0 mm"),
        "negative spacing": (row("*Metadata*.csv", "final_spacing", -0.8), "final_spacing -0.8 mm"),
        "other key": (lambda p: save_npz(p, chest(), "arr_0"), "no array 'ct'"),
        "pickled": (lambda p: save_npz(p, np.array([{}], dtype=object)), "no plain numbers"),
        "no row": (row("*Metadata*.csv", "", None), "metadata CSV has no row"),
    },
    "dicom": {
        "empty": (slice_of(empty), "no DICOM header"),
        "cut short": (slice_of(cut), "cut short"),
        "2-D": (again(hu=chest()[:, :, :1]), "only 1 slices"),
        "4-D": (again(change=lambda k, h: setattr(h, "ImagePositionPatient", [0, 0, k // 2 * 6])), "where another one"),
        "zero spacing": (again(PixelSpacing=[0, 2]), "PixelSpacing is 0×2 mm"),
        "negative spacing": (again(PixelSpacing=[2, -2]), "PixelSpacing is 2×-2 mm"),
        "missing slice": (slice_of(lambda p: p.unlink()), "slices are missing"),
        "other modality": (again(Modality="PT"), "modality is PT"),
    },
}


@pytest.mark.parametrize(("layout", "case"), [(layout, case) for layout in BAD for case in BAD[layout]])
def test_a_bad_volume_is_refused_and_the_others_are_not(layout: str, case: str, tmp_path: Path) -> None:
    spoil, words = BAD[layout][case]
    source, path = archive(tmp_path / "archive", layout)
    before = read_items(source, layout, 0.0, key=KEY)
    assert [refused(item) for item in before] == ["", ""]
    spoil(path)
    reasons = [refused(item) for item in read_items(source, layout, 0.0, key=KEY)]
    assert reasons.count("") == 1
    assert any(re.search(words, reason) for reason in reasons), reasons
    assert all("\n" not in reason and reason.endswith(".") for reason in reasons if reason)


def test_a_volume_without_a_report_is_listed_without_one(tmp_path: Path) -> None:
    for layout, table in (("ct-rate", "radiology_text_reports/*.csv"), ("manifest", "scans.csv")):
        source, path = archive(tmp_path / layout, layout)
        row(table, "Findings_EN" if layout == "ct-rate" else "report", "")(path)
        items = read_items(source, layout, 0.0)
        assert [(bool(item.report), item.unreported) for item in items] == [(True, False), (False, False)]
    source, _ = archive(tmp_path / "dicom", "dicom")
    assert [(item.report, item.unreported) for item in read_items(source, "dicom", 0.0, key=KEY)] == [("", False)] * 2
    source, _ = archive(tmp_path / "rad", "rad-chestct")
    assert [(item.report, item.unreported) for item in read_items(source, "rad-chestct", 0.0)] == [("", True)] * 2
