"""Augmentation on data workers and on the training device, held to MONAI's transforms with the same parameters."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa.volumes import transforms
from brgsa.volumes.augment import Augmentation, Placement, centre_crop
from brgsa.volumes.intensity import Intensity, unit_intensities


@functools.cache
def monai() -> Any:
    """MONAI's transforms; importing them takes seconds, which a process that only collects the tests need not spend."""
    return importlib.import_module("monai.transforms")


VOLUME = np.random.default_rng(0).integers(-1024, 3072, (14, 12, 9)).astype(np.int16)


@settings(deadline=None)
@given(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 3),
)
def test_placement_is_monais(starts: tuple[int, int, int], flips: tuple[bool, bool, bool], turns: int) -> None:
    crop = (10, 10, 6)
    ours = Placement(starts, crop, flips, turns).view(VOLUME)
    ends = [start + size for start, size in zip(starts, crop, strict=True)]
    theirs: Any = monai().SpatialCrop(roi_start=starts, roi_end=ends)(VOLUME[None])
    axes = [axis for axis, flipped in enumerate(flips) if flipped]
    theirs = monai().Flip(spatial_axis=axes)(theirs) if axes else theirs
    theirs = monai().Rotate90(k=turns, spatial_axes=(0, 1))(theirs) if turns else theirs
    assert ours.dtype == np.int16
    assert np.shares_memory(ours, VOLUME)  # nothing is copied until the crop goes into its batch
    np.testing.assert_array_equal(ours, np.asarray(theirs)[0])


@pytest.mark.parametrize("noise", [0.0, 25.0])
def test_intensities_are_monais(noise: float) -> None:
    rng = np.random.default_rng(1)
    ct = rng.integers(-1024, 3072, (3, 8, 7, 6)).astype(np.int16)
    scale, shift = np.array([-0.1, 0.0, 0.2], np.float32), np.array([30.0, -20.0, 0.0], np.float32)
    normal = rng.standard_normal(ct.shape).astype(np.float32)
    intensity = Intensity(torch.from_numpy(scale), torch.from_numpy(shift), torch.full((3,), noise) if noise else None)
    out = torch.full(ct.shape, torch.nan)
    blocks = [torch.from_numpy(ct[:1]), torch.from_numpy(ct[1:])]
    ours = unit_intensities(blocks, intensity, normal=torch.from_numpy(normal), out=out)
    assert ours.data_ptr() == out.data_ptr()
    assert ours.shape == (3, 1, 8, 7, 6)
    assert ours.dtype == torch.float32
    for i, hu in enumerate(ct):
        image: Any = monai().ScaleIntensity(minv=None, maxv=None, factor=float(scale[i]))(hu.astype(np.float32)[None])
        image = monai().ShiftIntensity(float(shift[i]))(image)
        adding = monai().RandGaussianNoise(prob=1.0, std=noise, sample_std=False)
        adding.noise = noise * normal[i][None]
        image = adding(image, randomize=False) if noise else image
        image = monai().ScaleIntensityRange(-1000, 1000, -1, 1, clip=True)(image)
        np.testing.assert_allclose(ours[i].numpy(), np.asarray(image), rtol=0, atol=1e-6)


def test_the_fused_step_is_the_one_in_place() -> None:
    from brgsa.volumes.intensity import _fused, _in_place

    traced = torch.compile(
        _fused, backend="aot_eager", fullgraph=True
    )  # one graph; the kernel's code is torch's matter
    rng = np.random.default_rng(2)
    ct = torch.from_numpy(rng.integers(-1024, 3072, (2, 8, 8, 8)).astype(np.int16))
    normal = torch.from_numpy(rng.standard_normal(ct.shape).astype(np.float32))
    for parameters in (
        (1e-3, None, None, None),
        (torch.full((2, 1, 1, 1), 1.1e-3), torch.full((2, 1, 1, 1), 0.02), torch.full((2, 1, 1, 1), 0.01), normal),
    ):
        one, other = torch.empty(ct.shape), torch.empty(ct.shape)
        traced(ct, *parameters, one)
        _in_place([ct], *parameters, other)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_step_leaves_its_input_alone_and_repeats_with_its_seed() -> None:
    ct = torch.from_numpy(VOLUME.copy()[None])
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        intensity = Intensity.draw(1, ct.device, scale=0.1, shift=10.0, noise=5.0)
        outputs.append(unit_intensities([ct], intensity, out=torch.empty(ct.shape)))
    np.testing.assert_array_equal(ct[0].numpy(), VOLUME)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_drawn_intensities_stay_in_their_ranges() -> None:
    torch.manual_seed(0)
    drawn = Intensity.draw(2000, torch.device("cpu"), scale=0.2, shift=30.0, noise=0.0)
    assert drawn is not None
    assert drawn.noise is None
    for values, width in ((drawn.scale, 0.2), (drawn.shift, 30.0)):
        assert -width <= float(values.min()) < -0.9 * width
        assert 0.9 * width < float(values.max()) <= width
    assert Intensity.draw(4, torch.device("cpu"), scale=0.0, shift=0.0, noise=0.0) is None


def placed(augmentation: Augmentation, epoch: int, row: int, crop: tuple[int, int, int] = (8, 8, 6)) -> np.ndarray:
    out = np.empty(crop, np.int16)
    augmentation.place(VOLUME, out, epoch, row)
    return out


def test_seed_epoch_and_row_decide() -> None:
    some = Augmentation(seed=3, flip=(0.5, 0.5, 0.5), rotate=0.5)
    np.testing.assert_array_equal(placed(some, 1, 2), placed(some, 1, 2))
    for other in (placed(some, 1, 3), placed(some, 2, 2), placed(Augmentation(4, some.flip, some.rotate), 1, 2)):
        assert not np.array_equal(placed(some, 1, 2), other)


def test_chances_are_kept() -> None:
    rng = np.random.default_rng(0)
    draws = [Augmentation(0, (0.0, 0.3, 1.0), 0.4).draw(rng, VOLUME.shape, (8, 8, 6)) for _ in range(2000)]
    flips = np.array([draw.flips for draw in draws]).mean(axis=0)
    assert flips[0] == 0
    assert flips[1] == pytest.approx(0.3, abs=0.05)
    assert flips[2] == 1
    turns = np.bincount([draw.turns for draw in draws]) / 2000
    assert turns == pytest.approx([0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3], abs=0.05)
    starts = np.array([draw.starts for draw in draws])
    assert starts.min(axis=0).tolist() == [0, 0, 0]
    assert starts.max(axis=0).tolist() == [6, 4, 3]  # the last place that holds the whole crop


def test_the_default_is_the_crop_alone() -> None:
    out = placed(Augmentation(seed=0), 0, 0)
    windows = np.lib.stride_tricks.sliding_window_view(VOLUME, out.shape).reshape(-1, *out.shape)
    assert (windows == out).all(axis=(1, 2, 3)).sum() == 1


def test_the_centre_crop() -> None:
    np.testing.assert_array_equal(centre_crop(VOLUME, (10, 12, 5)), VOLUME[2:12, :, 2:7])


def test_a_monai_transform_is_plugged_in() -> None:
    smooth = {"name": "GaussianSmooth", "sigma": 0.8}
    out = placed(Augmentation(0, transforms=(smooth,)), 0, 0)
    plain = placed(Augmentation(0), 0, 0)
    theirs = np.asarray(monai().GaussianSmooth(sigma=0.8)(plain.astype(np.float32)[None]))[0]
    np.testing.assert_array_equal(out, np.rint(theirs).astype(np.int16))


def test_random_transforms_repeat_with_seed_epoch_and_row() -> None:
    some = Augmentation(
        0,
        transforms=(
            {"name": "RandGaussianNoise", "prob": 0.9, "std": 40.0},
            {"name": "RandGaussianSmooth", "prob": 0.5, "sigma_x": [0.5, 1.0]},
        ),
    )
    first = [placed(some, 1, row) for row in range(6)]
    again = [placed(some, 1, row) for row in reversed(range(6))]  # another order, the same volumes
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)
    noise = [out.astype(int) - placed(Augmentation(0), 1, row) for row, out in enumerate(first)]
    assert len({change.tobytes() for change in noise}) > 3


def test_what_leaves_int16_is_clipped() -> None:
    out = transforms.apply([{"name": "ScaleIntensity", "minv": None, "maxv": None, "factor": 99.0}], VOLUME, seed=0)
    assert (out.min(), out.max()) == (-32768, 32767)


@pytest.mark.parametrize(
    ("spec", "code", "hint"),
    [
        ({"name": "RandGausianSmooth"}, "unknown-transform", "RandGaussianSmooth"),
        ({"name": "RandFlipd", "keys": ["image"]}, "unknown-transform", "RandFlip"),
        ({"name": "Zzz"}, "unknown-transform", ""),
        ({"name": "RandFlip", "probb": 0.5}, "transform-arguments", "probb"),
        ({"name": "RandGaussianSmooth", "prob": 0.1, "sigma_x": ["a", "b"]}, "transform-fails", "(8, 8, 6)"),
        (
            {"name": "RandSpatialCrop", "roi_size": [4, 4, 4], "random_size": False},
            "transform-changes-shape",
            "(4, 4, 4)",
        ),
    ],
)
def test_a_transform_that_cannot_serve_is_named(spec: dict[str, Any], code: str, hint: str) -> None:
    with refused(code, field="data.transforms", value=spec["name"]) as refusal:
        transforms.check([spec], (8, 8, 6))
    assert hint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_transforms_that_serve_are_accepted() -> None:
    transforms.check([{"name": "RandGaussianSmooth", "prob": 0.2, "sigma_x": [0.5, 1.0]}], (8, 8, 6))


@pytest.mark.parametrize("name", ["SaveImage", "LoadImage", "WriteFileMapping"])
def test_a_configuration_reads_and_writes_no_files(name: str) -> None:
    with refused("unknown-transform", value=name):
        transforms.build({"name": name})
