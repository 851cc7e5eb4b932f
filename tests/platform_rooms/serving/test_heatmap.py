"""Heat maps of a scan on disk: on its own grid, at the height of the model's opinion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from models import LABELS, save_model
from refusals import refused

from brgsa import zeroshot
from brgsa_platform.serving.heatmap import heatmap
from brgsa_platform.serving.predict import predict
from scans import chest, save_dicom, save_nifti

PROMPTS = zeroshot.prompts(LABELS)
# Along -y, x and z, as a program may write it: the map must lie over it without being turned.
TURNED = np.array([[0.0, 5.0, 0.0, -90.0], [-5.0, 0.0, 0.0, 70.0], [0.0, 0.0, 6.0, -300.0], [0, 0, 0, 1]])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its validation scans score lower than any scan for the first prompt, higher for the second; the third is not known."""
    reference = {PROMPTS[0]: [-1.0, -0.9], PROMPTS[1]: [0.99, 1.0]}
    return save_model(tmp_path_factory.mktemp("model") / "epoch-0001", reference_scores=reference)


def test_maps_lie_over_the_scan(model: Path, tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "scan.nii.gz", chest().transpose(1, 0, 2), TURNED)
    done = heatmap(model, scan, PROMPTS, tmp_path / "maps")
    of_file = nibabel.load(scan)
    score = {row.prompt: row.score for row in predict(model, scan, PROMPTS).rows}
    for one in done.maps:
        image = nibabel.load(one.file)
        assert image.shape == of_file.shape
        np.testing.assert_allclose(image.affine, of_file.affine, atol=1e-5)
        assert one.ranked.score == pytest.approx(score[one.ranked.prompt], abs=1e-5)
    first, second, third = done.maps
    assert (first.opinion, second.opinion, third.opinion) == (1.0, 0.0, None)
    values = nibabel.load(first.file).get_fdata()
    assert 0.5 < values.max() <= 1
    assert first.peak_mm == pytest.approx(
        (of_file.affine @ [*np.unravel_index(values.argmax(), values.shape), 1])[:3].tolist()
    )
    assert not nibabel.load(second.file).get_fdata().any()
    assert second.peak_mm is None
    assert done.picture.stat().st_size > 10_000


def test_what_is_not_drawn_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt without opinion, one that no place in the scan speaks for, and one that nothing is known of."""
    monkeypatch.setenv("COLUMNS", "200")  # a terminal that breaks no line of the table
    done = heatmap(model, save_nifti(tmp_path / "scan.nii", chest()), PROMPTS, tmp_path / "maps")
    known, without, unknown = done.maps
    nowhere = replace(known, peak_mm=None)
    told = [one.said() for one in (known, without, unknown, nowhere)]
    assert told[0] == "100%"
    assert len(set(told)) == 4
    done.print()
    assert without.said() in " ".join(capsys.readouterr().out.split())
    asked = {one["prompt"]: one for one in json.loads(done.to_json())["maps"]}
    assert (asked[PROMPTS[1]]["opinion"], asked[PROMPTS[1]]["peak_mm"]) == (0, None)


def test_a_file_in_any_orientation_has_the_map_of_the_straight_one(model: Path, tmp_path: Path) -> None:
    hu = chest()
    straight = save_nifti(tmp_path / "straight.nii", hu, np.diag([-5.0, -5.0, 6.0, 1.0]))
    turned = save_nifti(tmp_path / "turned.nii", np.flip(hu, (0, 2)).transpose(2, 0, 1).copy(), _flipped(hu.shape))
    maps = [
        nibabel.as_closest_canonical(nibabel.load(heatmap(model, scan, PROMPTS[:1], tmp_path / scan.stem).maps[0].file))
        for scan in (straight, turned)
    ]
    np.testing.assert_allclose(maps[0].get_fdata(), maps[1].get_fdata(), atol=1e-3)
    np.testing.assert_allclose(maps[0].affine, maps[1].affine, atol=1e-3)


def _flipped(shape: tuple[int, ...]) -> np.ndarray:
    """The affine of `straight` turned round along x and z, with z, x, y as its axes."""
    straight = np.diag([-5.0, -5.0, 6.0, 1.0])
    flip = np.eye(4)
    flip[0, 0], flip[2, 2], flip[0, 3], flip[2, 3] = -1, -1, shape[0] - 1, shape[2] - 1
    order = np.eye(4)[:, [2, 0, 1, 3]]
    affine: np.ndarray = straight @ flip @ order
    return affine


def test_a_series_has_its_map_where_its_slices_are(model: Path, tmp_path: Path) -> None:
    save_dicom(tmp_path / "series", chest())
    (one,) = heatmap(model, tmp_path / "series", PROMPTS[:1], tmp_path / "maps").maps
    image = nibabel.load(one.file)
    assert image.shape == chest().shape
    np.testing.assert_allclose(image.affine, np.diag([-5.0, -5.0, 6.0, 1.0]), atol=1e-6)


def test_a_map_of_a_scan_outside_the_training_s_says_so(tmp_path: Path) -> None:
    seen = {"spacing": [[1, 2]] * 3, "extent": [[100, 400]] * 3, "mean": [[-1000, 1000]]}
    narrow = save_model(tmp_path / "epoch-0001", more_data={"seen": seen})
    done = heatmap(narrow, save_nifti(tmp_path / "scan.nii", chest()), PROMPTS[:1], tmp_path / "maps")
    assert [warning for warning in done.warnings if "outside the training's scans: spacing x 5 mm" in warning]


def test_no_prompt_and_no_folder(model: Path, tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "scan.nii", chest())
    with refused("no-prompts", field="--prompt"):
        heatmap(model, scan, [], tmp_path / "maps")
    (tmp_path / "file").write_text("")
    with refused("folder-not-writable", field="--out"):
        heatmap(model, scan, PROMPTS[:1], tmp_path / "file")
