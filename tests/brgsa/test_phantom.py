"""The phantom: what it paints is what it labels and reports, and what it writes reads back as CT-RATE's first release."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa.phantom import COMMON, RARE, Case, render, sample_cases, write_report, write_tree
from brgsa.phantom.cases import PREVALENCE, SAMPLERS, SHARP
from brgsa.phantom.scanners import METADATA

SCANS = 9
CASES = sample_cases(1000, 3)
STATED_BY = {  # one of these stands in any sentence that states the abnormality
    "Medical material": ("pacemaker", "port", "sternotomy", "sutures"),
    "Arterial wall calcification": ("calcific", "calcified"),
    "Cardiomegaly": ("heart", "cardi"),
    "Pericardial effusion": ("pericardial",),
    "Coronary artery wall calcification": ("coronary",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymph", "LAP"),
    "Emphysema": ("emphysem",),
    "Atelectasis": ("atelecta",),
    "Lung nodule": ("nodule",),
    "Lung opacity": ("ground glass", "ground-glass", "frosted glass"),
    "Pleural effusion": ("pleural",),
    "Mosaic attenuation pattern": ("mosaic",),
    "Consolidation": ("consolidat",),
    "Pneumothorax": ("pneumothorax",),
    "Lung cyst": ("cyst",),
    "Lung mass": ("mass",),
    "Pneumomediastinum": ("pneumomediastinum",),
}


def digest(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_only(*names: str, seed: int = 0) -> Case:
    """An ordinary patient with just these findings."""
    findings = tuple(SAMPLERS[n](np.random.default_rng(seed)) for n in names)
    return dataclasses.replace(CASES[5], findings=findings, gone=())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "tree"
    ticks: list[None] = []
    summary = write_tree(out, SCANS, 4, workers=1, on_scan=lambda: ticks.append(None))
    assert len(ticks) == summary.scans == SCANS
    return out


@pytest.fixture(scope="module")
def healthy() -> np.ndarray:
    return render(with_only())


class TestTree:
    @pytest.mark.slow
    def test_the_number_of_workers_changes_no_byte(self, tree: Path, tmp_path: Path) -> None:
        write_tree(tmp_path / "again", SCANS, 4, workers=2)
        assert digest(tmp_path / "again") == digest(tree)

    def test_another_seed_is_another_phantom(self, tree: Path, tmp_path: Path) -> None:
        write_tree(tmp_path / "other", 2, 5, workers=1)
        name = "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz"
        assert digest(tmp_path / "other")[name] != digest(tree)[name]

    def test_column_names_are_those_of_ct_rate(self, tree: Path, shared_data: Path) -> None:
        for ours, real in (
            ("metadata/validation_metadata.csv", "valid_metadata.csv"),
            ("multi_abnormality_labels/valid_predicted_labels.csv", "valid_labels.csv"),
        ):
            first = (shared_data / "ct-rate" / real).read_text(encoding="utf-8").splitlines()[0]
            assert (tree / "dataset" / ours).read_text(encoding="utf-8").splitlines()[0] == first

    def test_tables_cover_exactly_the_volumes_on_disk(self, tree: Path) -> None:
        data = tree / "dataset"
        for split, long in (("train", "train"), ("valid", "validation")):
            names = sorted(p.name for p in (data / split).rglob("*.nii.gz"))
            assert names
            for table in (
                f"radiology_text_reports/{long}_reports.csv",
                f"metadata/{long}_metadata.csv",
                f"multi_abnormality_labels/{split}_predicted_labels.csv",
                f"multi_abnormality_labels/{split}_lt_labels.csv",
            ):
                assert sorted(r["VolumeName"] for r in rows(data / table)) == names
        assert tuple(rows(data / "metadata/train_metadata.csv")[0]) == METADATA
        assert tuple(rows(data / "multi_abnormality_labels/train_predicted_labels.csv")[0])[1:] == CT_RATE

    def test_labels_on_disk_are_the_findings_of_the_cases(self, tree: Path) -> None:
        folder = tree / "dataset" / "multi_abnormality_labels"
        on_disk = {}
        for split in ("train", "valid"):
            for common, rare in zip(
                rows(folder / f"{split}_predicted_labels.csv"), rows(folder / f"{split}_lt_labels.csv"), strict=True
            ):
                on_disk[common["VolumeName"].rsplit("_", 1)[0]] = {n for n, v in (common | rare).items() if v == "1"}
        assert on_disk == {c.scan_id: set(c.names) for c in sample_cases(SCANS, 4)}

    def test_header_is_bare_and_the_table_brings_hu_and_spacing_back(self, tree: Path) -> None:
        case = sample_cases(SCANS, 4)[0]
        path = tree / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz"
        image = nib.load(path)
        assert np.array_equal(image.affine, np.eye(4))
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.header.get_slope_inter() == (None, None)
        assert image.get_data_dtype() == np.int16
        row = rows(tree / "dataset/metadata/train_metadata.csv")[0]
        hu = np.asarray(image.dataobj) * float(row["RescaleSlope"]) + float(row["RescaleIntercept"])
        assert np.abs(hu - render(case)).max() <= 0.501  # rounded to whole HU
        assert image.shape == (int(row["Columns"]), int(row["Rows"]), int(row["NumberofSlices"]))
        assert (*json.loads(row["XYSpacing"]), float(row["ZSpacing"])) == case.reconstructions[0].spacing

    def test_a_finished_tree_is_left_alone(self, tree: Path) -> None:
        before = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
        assert write_tree(tree, SCANS, 4).scans == SCANS
        assert {p: p.stat().st_mtime_ns for p in tree.rglob("*")} == before

    def test_what_is_not_this_phantom_is_refused(self, tree: Path, tmp_path: Path) -> None:
        with refused("another-phantom", field=str(tree), value=(SCANS, 4)):
            write_tree(tree, SCANS, 5)
        (tmp_path / "mine.txt").write_text("kept")
        with refused("folder-not-empty", field=str(tmp_path)):
            write_tree(tmp_path, SCANS, 4)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
        with refused("folder-not-empty", field=str(tmp_path / "mine.txt")):
            write_tree(tmp_path / "mine.txt", SCANS, 4)
        with refused("impossible-value", field="scans", value=0):
            write_tree(tmp_path / "none", 0, 4)
        with refused("impossible-value", field="seed", value=-1):
            write_tree(tmp_path / "none", 1, -1)
        with refused("folder-unwritable", field=str(tmp_path / "mine.txt" / "below")):
            write_tree(tmp_path / "mine.txt" / "below", 1, 0)

    def test_a_broken_run_leaves_nothing(self, tmp_path: Path) -> None:
        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_tree(tmp_path / "out", 2, 0, workers=1, on_scan=stop)
        assert not list(tmp_path.iterdir())


class TestCases:
    def test_no_patient_is_on_both_sides(self) -> None:
        sides: dict[int, set[str]] = {}
        for case in CASES:
            sides.setdefault(case.build_seed, set()).add(case.split)
        assert all(len(s) == 1 for s in sides.values())
        assert len(sides) < len(CASES)
        assert 0.70 < np.mean([c.split == "train" for c in CASES]) < 0.74
        assert len({c.scan_id for c in CASES}) == len(CASES)

    def test_prevalence(self) -> None:
        for split, low, high in (("train", 0.01, 0.03), ("valid", 0.08, 0.10)):
            mine = [c for c in CASES if c.split == split]
            for name in RARE:
                assert low <= np.mean([name in c.names for c in mine]) <= high
        for name in COMMON:
            share = np.mean([name in c.names for c in CASES])
            assert 0.12 <= share <= 0.40
            assert share == pytest.approx(PREVALENCE[name], abs=0.05)

    def test_findings_do_not_stand_for_each_other(self) -> None:
        table = np.asarray([[n in c.names for n in COMMON] for c in CASES], float)
        assert (np.corrcoef(table.T) - np.eye(len(COMMON))).max() < 0.35

    def test_grids_differ_and_some_scans_have_a_sharp_second_one(self) -> None:
        assert len({c.reconstructions[0].shape for c in CASES}) > 100
        assert np.mean([len(c.reconstructions) == 2 for c in CASES]) == pytest.approx(SHARP, abs=0.04)
        for case in CASES:
            for grid in case.reconstructions:
                assert all(
                    n * s >= least for n, s, least in zip(grid.shape, grid.spacing, (340, 340, 225), strict=True)
                )

    def test_names_are_known_labels(self) -> None:
        assert set(COMMON) <= set(CT_RATE)
        assert set(RARE) <= set(CT_RATE_LT)
        assert (len(COMMON), len(RARE)) == (14, 4)


class TestRendering:
    def test_tissues_have_their_hu(self, healthy: np.ndarray) -> None:
        nx, ny, nz = healthy.shape
        middle = healthy[:, :, nz // 2]
        assert (healthy[:4, :4] < -900).all()  # air round the patient
        lung = healthy[(healthy > -900) & (healthy < -600)]
        assert lung.size * np.prod(CASES[5].reconstructions[0].spacing) > 2e6  # two litres and more
        assert -860 < np.median(lung) < -740
        assert 20 < np.median(middle[int(nx * 0.5) : int(nx * 0.6), int(ny * 0.38) : int(ny * 0.48)]) < 75  # heart
        assert np.percentile(healthy, 99.5) > 250  # bone
        assert healthy.max() < 700  # no metal

    def test_left_is_where_the_heart_lies_and_the_spine_is_behind(self, healthy: np.ndarray) -> None:
        nx, ny, nz = healthy.shape
        low = healthy[:, :, int(nz * 0.4)]
        soft = (low > 0) & (low < 120)
        lung_right = (low[: nx // 2] < -600).sum()
        assert soft[nx // 2 :, ny // 4 : ny // 2].sum() > soft[: nx // 2, ny // 4 : ny // 2].sum()
        column = (healthy[nx // 2 - 5 : nx // 2 + 5] > 200).sum((0, 2))
        assert np.argmax(column) > ny // 2
        assert lung_right > 300
        top, bottom = (healthy[nx // 4, ny // 2 - 8 : ny // 2 + 8, k].mean() for k in (int(nz * 0.6), 1))
        assert top < -500 < bottom  # lung above, liver below

    @pytest.mark.parametrize("name", [*COMMON, *RARE])
    def test_a_finding_changes_many_voxels_of_the_same_patient(self, name: str, healthy: np.ndarray) -> None:
        changed = np.abs(render(with_only(name)) - healthy) > 60
        volume = changed.sum() * np.prod(CASES[5].reconstructions[0].spacing) / 1000
        assert volume > 5, f"{name}: {volume:.1f} ml"

    def test_effusion_is_fluid_where_the_control_has_lung(self, healthy: np.ndarray) -> None:
        sick = render(with_only("Pleural effusion"))
        filled = (healthy < -600) & (sick > -300)
        assert filled.sum() > 500
        assert -30 < np.median(sick[filled]) < 40
        assert np.argwhere(filled)[:, 1].mean() > healthy.shape[1] / 2  # it lies behind

    def test_densities_of_what_is_added(self, healthy: np.ndarray) -> None:
        def added(name: str, over: float) -> np.ndarray:
            sick = render(with_only(name))
            return sick[np.abs(sick - healthy) > over]

        assert np.percentile(added("Medical material", 500), 60) > 1000
        assert np.percentile(added("Arterial wall calcification", 150), 60) > 300
        assert np.median(added("Pneumothorax", 100)) < -900
        assert np.median(added("Emphysema", 100)) < -900
        assert -700 < np.median(added("Lung opacity", 150)) < -350
        assert -30 < np.median(added("Lung nodule", 500)) < 80

    def test_a_second_reconstruction_shows_the_same_patient(self) -> None:
        case = next(c for c in CASES if len(c.reconstructions) == 2)
        soft, sharp = render(case, 0), render(case, 1)
        assert sharp.shape == case.reconstructions[1].shape
        litres = [
            (v > -300).sum() * np.prod(g.spacing) / 1e6
            for v, g in zip((soft, sharp), case.reconstructions, strict=True)
        ]
        assert litres[0] == pytest.approx(litres[1], rel=0.03)
        assert np.std(sharp[:8, :8]) > 1.3 * np.std(soft[:8, :8])


class TestReports:
    def test_every_positive_is_stated_in_a_sentence_that_denies_nothing(self) -> None:
        denials = ("not ", "no ", "are normal", "natural", "cannot", "regressed", "resolved", "removed", "previously")
        for case in CASES[:400]:
            sentences = write_report(case).findings.replace(";", ".").split(". ")
            plain = [s.lower() for s in sentences if not any(d in f"{s.lower()} " for d in denials)]
            for name in case.names:
                assert any(w.lower() in s for w in STATED_BY[name] for s in plain), (name, sentences)

    def test_length_and_variety(self) -> None:
        reports = [write_report(c) for c in CASES[:300]]
        lengths = [len(f"{r.findings} {r.impressions}".split()) for r in reports]
        assert 150 <= np.median(lengths) <= 230
        assert len({r.findings for r in reports}) == len(reports)
        assert 0.2 < np.mean([r.clinical == "Not given." for r in reports]) < 0.8

    def test_no_field_is_left_open(self) -> None:
        for case in CASES[:400]:
            text = " ".join(dataclasses.astuple(write_report(case)))
            assert not set("{}") & set(text)
            assert "  " not in text
            assert " ." not in text
