"""The common grid: resampling, cropping and padding, and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa.volumes import Geometry, Volume, read_volume, standardize
from scans import chest


def by_itk(volume: Volume, geometry: Geometry, interpolator: int = sitk.sitkLinear) -> npt.NDArray[np.float64]:
    """SimpleITK's resampling onto the grid centred on the scan."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing)
    middle = (np.array(volume.array.shape) - 1) / 2 * volume.spacing
    origin = middle - (np.array(geometry.shape) - 1) / 2 * geometry.spacing
    identity = sitk.Transform(3, sitk.sitkIdentity)
    grid = (geometry.shape, identity, interpolator, origin.tolist(), geometry.spacing, np.eye(3).ravel().tolist())
    return sitk.GetArrayFromImage(sitk.Resample(image, *grid, -1000.0)).T.clip(*geometry.clip)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.5, 1.5, 3.0), (64, 64, 32)), ((2.7, 3.1, 7.0), (20, 18, 12)), ((0.9, 4.0, 1.3), (31, 40, 17))],
)
def test_linear_resampling_is_itk_s(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    volume = Volume(chest().astype(np.float32), (2.0, 1.7, 4.0))
    geometry = Geometry(spacing=spacing, shape=shape)
    ours = standardize(volume, geometry)
    assert ours.dtype == np.int16
    assert ours.flags.c_contiguous
    assert np.abs(ours - by_itk(volume, geometry)).max() <= 1


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ct/chest_a.nrrd", "ct/thorax_contrast.nii.gz", "dicom/A0002/series3_B40f"])
def test_linear_resampling_of_a_real_scan_is_itk_s(name: str, shared_data: Path) -> None:
    volume = read_volume(shared_data / name)
    geometry = Geometry()
    # Inside the outermost voxels' centres; half a voxel further out, one bit of rounding parts border from air.
    inside = [
        np.flatnonzero(np.abs(np.arange(want) - (want - 1) / 2) * there <= (have - 1) / 2 * here)
        for have, here, want, there in zip(
            volume.array.shape, volume.spacing, geometry.shape, geometry.spacing, strict=True
        )
    ]
    difference = np.abs(standardize(volume, geometry) - by_itk(volume, geometry))[np.ix_(*inside)]
    assert difference.size > 1e6
    assert difference.max() <= 1


def test_nearest_is_itk_s_and_invents_no_values() -> None:
    volume = Volume(chest().astype(np.float32), (2.0, 1.7, 4.0))
    for spacing, shape in (((1.31, 1.53, 2.97), (64, 64, 32)), ((2.7, 3.1, 7.3), (20, 18, 12))):
        geometry = Geometry(spacing=spacing, shape=shape, interpolation="nearest")
        ours = standardize(volume, geometry)
        assert set(np.unique(ours)) <= {-1000, *chest().clip(-1000, 1000).ravel().tolist()}
        np.testing.assert_array_equal(ours, by_itk(volume, geometry, sitk.sitkNearestNeighbor))


def test_cubic_gives_parabolas_back_where_linear_cuts_their_corners() -> None:
    x = np.arange(30) - 14.5
    scan = (900 - 4 * x[:, None, None] ** 2 + 3 * x[None, :, None] * x[None, None, :]).astype(np.float32) / 2
    fine = {"spacing": (0.7, 0.7, 0.7), "shape": (34, 34, 34)}
    at = (np.arange(34) - 16.5) * 0.7
    truth = (900 - 4 * at[:, None, None] ** 2 + 3 * at[None, :, None] * at[None, None, :]) / 2
    cubic, linear = (
        standardize(Volume(scan, (1, 1, 1)), Geometry(**fine, interpolation=i)) for i in ("cubic", "linear")
    )
    inside = (np.abs(at) < 12).nonzero()[0]
    here = np.ix_(inside, inside, inside)
    assert np.abs(cubic - truth)[here].max() <= 0.51
    assert np.abs(linear - truth)[here].max() > 0.55


def test_the_same_grid_changes_nothing_and_padding_is_air() -> None:
    volume = Volume(chest((10, 12, 8)).astype(np.float32), (1.5, 1.5, 3.0))
    inside = chest((10, 12, 8)).clip(-1000, 1000)
    np.testing.assert_array_equal(standardize(volume, Geometry(shape=(10, 12, 8))), inside)
    padded = standardize(volume, Geometry(shape=(14, 12, 12)))
    np.testing.assert_array_equal(padded[2:12, :, 2:10], inside)
    assert (padded[:2] == -1000).all()
    assert (padded[..., -2:] == -1000).all()
    np.testing.assert_array_equal(standardize(volume, Geometry(shape=(4, 6, 8))), inside[3:7, 3:9])
    narrow = standardize(volume, Geometry(shape=(14, 12, 8), clip=(-200.0, 300.0)))
    assert narrow.min() == -200
    assert narrow[0, 0, 0] == -200


def test_antialias_averages_where_plain_interpolation_drops() -> None:
    fine = np.zeros((48, 48, 48), np.float32)
    fine[::4] = 800.0  # thin sheets, a quarter of the volume
    volume = Volume(fine, (1.0, 1.0, 1.0))
    coarse = {"spacing": (4.0, 4.0, 4.0), "shape": (12, 12, 12)}
    inside = (slice(2, -2),) * 3
    plain = standardize(volume, Geometry(**coarse))[inside]
    smooth = standardize(volume, Geometry(**coarse, antialias=True))[inside]
    assert np.abs(smooth - 200.0).max() <= 1
    assert np.abs(plain - 200.0).min() > 100
    upwards = Geometry(spacing=(0.7, 0.7, 0.7), shape=(24, 24, 24))
    fine_grid = Geometry(spacing=(0.7, 0.7, 0.7), shape=(24, 24, 24), antialias=True)
    np.testing.assert_array_equal(standardize(volume, upwards), standardize(volume, fine_grid))


sizes, millimetres = st.integers(8, 24), st.floats(0.3, 9.0)


@settings(max_examples=60, deadline=None)
@given(
    have=st.tuples(sizes, sizes, sizes),
    here=st.tuples(millimetres, millimetres, millimetres),
    want=st.tuples(st.integers(1, 20), sizes, sizes),
    there=st.tuples(millimetres, millimetres, millimetres),
    how=st.sampled_from([("linear", False), ("linear", True), ("nearest", False), ("cubic", False)]),
)
def test_any_scan_fits_any_grid(have: Any, here: Any, want: Any, there: Any, how: tuple[str, bool]) -> None:
    scan = np.full(have, 55.0, np.float32)
    out = standardize(Volume(scan, here), Geometry(there, want, interpolation=how[0], antialias=how[1]))
    assert out.shape == want
    assert set(np.unique(out)) <= {-1000, 55}
    assert out[tuple((n - 1) // 2 for n in want)] == 55


def test_geometry_survives_json_and_names_its_mistakes() -> None:
    geometry = Geometry((1.0, 2.0, 3.0), (4, 5, 6), (-500.0, 500.0), antialias=True)
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    assert Geometry.from_dict({"spacing": [1.5, 1.5, 3.0]}) == Geometry(interpolation="linear")
    with refused("unknown-field", field="geometry.spaces"):
        Geometry.from_dict({"spaces": [1, 1, 1]})
    for change, name, value in (
        ({"spacing": [0, 1, 1]}, "spacing", (0, 1, 1)),
        ({"shape": [4, 4]}, "shape", (4, 4)),
        ({"clip": [1000, -1000]}, "clip", (1000, -1000)),
        ({"clip": [-40000, 1000]}, "clip", (-40000, 1000)),
        ({"interpolation": "lanczos"}, "interpolation", "lanczos"),
        ({"interpolation": "cubic", "antialias": True}, "antialias", True),
    ):
        with refused("impossible-value", field=f"geometry.{name}", value=value):
            Geometry.from_dict(change)
