"""RAD-ChestCT's files: their axes, what their metadata row adds, and which are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from refusals import refused

from brgsa.volumes import quality_warnings, read_volume
from scans import chest

ROW = {"final_spacing": "5", "orig_orientation": "1,0,0,0,1,0"}


def as_published(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """HU (x, y, z) as RAD-ChestCT stores them: from head to feet, then rows, then columns; clipped."""
    return hu.transpose(2, 1, 0)[::-1].clip(-1000, 1000)


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_the_archive_s_axes_become_ours(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "trn00001.npz", ct=as_published(chest()))
    volume = read_volume(path, ROW)
    np.testing.assert_array_equal(volume.array, chest().clip(-1000, 1000))
    assert volume.spacing == (5.0, 5.0, 5.0)
    assert volume.flags == ("rescale:header", "geometry:csv")
    prone = read_volume(path, {**ROW, "orig_orientation": "-1,0,0,0,-1,0", "final_spacing": "6"})
    np.testing.assert_array_equal(prone.array, chest().clip(-1000, 1000)[::-1, ::-1])
    assert prone.spacing == (6.0, 6.0, 6.0)


def test_without_its_row_the_archive_s_grid_is_assumed_and_said(tmp_path: Path) -> None:
    hu = np.kron(chest(), np.ones((5, 6, 7), np.int16))  # 160×173×112 mm
    volume = read_volume(save_npz(tmp_path / "a.npz", ct=as_published(hu)))
    np.testing.assert_array_equal(volume.array, hu.clip(-1000, 1000))
    assert volume.spacing == (0.8, 0.8, 0.8)
    assert volume.flags == ("rescale:header", "geometry:assumed")
    assert len(quality_warnings(volume.flags)) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_inside(path: Path) -> None:
    """A whole zip around half an array."""
    raw = zipfile.ZipFile(path).read("ct.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ct.npy", raw[: len(raw) // 2])


def spoil_inside(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 50] = bytes(50)
    path.write_bytes(raw)


with_nan = as_published(chest()).astype(np.float32)
with_nan[1, 2, 3] = np.nan
# What spoils a file, and the code of its refusal with the value that is named, if any.
REFUSED: dict[str, tuple[Any, ...]] = {
    "missing": (lambda p: p.unlink(), "file-missing"),
    "empty": (lambda p: p.write_bytes(b""), "file-empty"),
    "cut short": (cut, "file-damaged"),
    "cut inside": (cut_inside, "voxels-not-numbers"),
    "spoilt inside": (spoil_inside, "file-damaged"),
    "text": (lambda p: p.write_text("<html>not found</html>"), "file-damaged"),
    "other key": (lambda p: save_npz(p, volume=chest(), arr_0=chest()), "array-missing", "volume, arr_0"),
    "no array": (lambda p: save_npz(p), "array-missing", "none"),
    "pickled": (lambda p: save_npz(p, ct=np.array([{"a": 1}], dtype=object)), "voxels-not-numbers"),
    "words": (lambda p: save_npz(p, ct=np.array(["a", "b"])), "voxels-not-numbers"),
    "2-D": (lambda p: save_npz(p, ct=chest()[0]), "not-3d", (36, 20)),
    "4-D": (lambda p: save_npz(p, ct=np.stack([chest()] * 2)), "not-3d", (2, 40, 36, 20)),
    "NaN": (lambda p: save_npz(p, ct=with_nan), "voxels-not-finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    spoil, code, *value = REFUSED[case]
    path = save_npz(tmp_path / "a.npz", ct=as_published(chest()))
    read_volume(path, ROW)
    spoil(path)
    with refused(code, path=str(path), **({"value": value[0]} if value else {})) as refusal:
        read_volume(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("final_spacing", "0", 0.0),
        ("final_spacing", "-0.8", -0.8),
        ("final_spacing", "[0.8, 0.8]", "[0.8, 0.8]"),
        ("orig_orientation", "1,0,0,1,0,0", (1, 0, 0, 1, 0, 0)),
    ],
)
def test_a_broken_row_is_named(field: str, text: str, value: object, tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", ct=as_published(chest()))
    with refused("metadata-value", field=field, value=value):
        read_volume(path, {**ROW, field: text})


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.write_text, (tmp_path / "exploded", "boom"))

    path = save_npz(tmp_path / "a.npz", ct=np.array([Bomb()], dtype=object))
    with refused("voxels-not-numbers", field="ct"):
        read_volume(path)
    assert not (tmp_path / "exploded").exists()
