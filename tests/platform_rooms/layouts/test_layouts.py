"""What lies in an archive, and which archives are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
from archives import read_items
from refusals import refused

from brgsa_platform.layouts import Item, read_archive

MANIFEST = ("volume", "report", "scan_id", "patient_id", "split", "Lung nodule", "Pneumothorax", "age")
METADATA = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImageOrientationPatient")


def save_table(path: Path, header: tuple[str, ...], rows: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=list(header)).to_csv(path, index=False)
    return path


def manifest(path: Path, *rows: list[object], header: tuple[str, ...] = MANIFEST, fraction: float = 0.1) -> list[Item]:
    table = save_table(path / "scans.csv", header, list(rows))
    return read_items(table, "manifest", fraction, roots=["/far", "s3://bucket/"])


def test_a_manifest_s_rows(tmp_path: Path) -> None:
    items = manifest(
        tmp_path,
        ["b/two.nii.gz", "Text, with a comma.", "s2", "007", "test", 1, "", 51],
        ["/far/one.nrrd", " None ", "s1", "01", "train", 0, 1, 52],
    )
    assert [(i.volume_id, i.scan_id, i.patient_id, i.split) for i in items] == [
        ("one", "s1", "01", "train"),
        ("two", "s2", "007", "test"),
    ]
    assert [(i.path, i.source, i.report) for i in items] == [
        ("/far/one.nrrd", "/far/one.nrrd", "None"),
        (str(tmp_path / "b/two.nii.gz"), "b/two.nii.gz", "Text, with a comma."),
    ]
    assert items[0].labels == {"Lung nodule": 0, "Pneumothorax": 1}
    assert items[1].labels == {"Lung nodule": 1, "Pneumothorax": None}
    assert items[0].metadata is None


@pytest.mark.parametrize(
    "volume",
    [
        "../secret.nii.gz",
        "b/../../secret.nii.gz",
        "/etc/passwd",
        "/far/../etc/passwd",
        "/farther/one.nrrd",
        "s3://bucket-of-others/one.nii.gz",
        "s3://bucket/../others/one.nii.gz",
        "file:///etc/passwd",
    ],
)
def test_a_manifest_does_not_lead_out_of_its_folder_and_roots(tmp_path: Path, volume: str) -> None:
    with refused("path-outside", field="volume", value=2):
        manifest(tmp_path, ["in.nii.gz", "x"], [volume, "x"], header=("volume", "report"))


def test_a_manifest_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    table = save_table(tmp_path / "data" / "scans.csv", ("volume", "report"), [["a.nii.gz", "x"], ["b/c.nii.gz", "x"]])
    monkeypatch.chdir(tmp_path / "work" / "deep")
    expected = [str(tmp_path / "data" / name) for name in ("a.nii.gz", "b/c.nii.gz")]
    for source in ("../../data/scans.csv", "../deep/../../data/scans.csv"):
        assert [item.path for item in read_items(Path(source), "manifest", 0.1)] == expected
    monkeypatch.chdir(tmp_path / "data")
    assert [item.path for item in read_items(Path("scans.csv"), "manifest", 0.1)] == expected
    save_table(table, ("volume", "report"), [["../data/a.nii.gz", "x"], ["../secret.nii.gz", "x"]])
    with refused("path-outside", field="volume", value=2):
        read_items(Path("../data/scans.csv"), "manifest", 0.1)


NRRD = "NRRD0005\ntype: int16\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
DETACHED: dict[str, tuple[str, str, str]] = {
    "NRRD": ("a.nhdr", NRRD + "data file: {}\n\n", "a.raw"),
    "NRRD, older spelling": ("a.nhdr", NRRD + "datafile:{}\r\n\r\n", "a.raw"),
    "NRRD, a list": ("a.nhdr", NRRD + "data file: LIST 2\nown.raw\n{}\n", "a.raw"),
    "NRRD, a long header": ("a.nhdr", NRRD + "# x\n" * 40_000 + "data file: {}\n\n", "a.raw"),
    "NRRD, a long list": ("a.nhdr", NRRD + "data file: LIST 2\n" + "own.raw\n" * 20_000 + "{}\n", "a.raw"),
    "NRRD, a pattern": ("a.nhdr", NRRD + "data file: {} 1 2 1\n\n", "a%03d.raw"),
    "NRRD by another name": ("a.nrrd", NRRD + "data file: {}\n\n", "a.raw"),
    "MetaImage": ("a.mhd", META + "ElementDataFile = {}\n", "a.raw"),
    "MetaImage by another name": ("a.mha", META + "ElementDataFile = {}\n", "a.raw"),
    "MetaImage, a list": ("a.mhd", META + "ElementDataFile = LIST\nown.raw\n{}\n", "a.raw"),
    "MetaImage, a long header": ("a.mhd", META + "Comment = x\n" * 20_000 + "ElementDataFile = {}\n", "a.raw"),
    "MetaImage, a pattern": ("a.mhd", META + "ElementDataFile = {} 1 2 1\n", "a%03d.raw"),
}


@pytest.mark.parametrize("case", DETACHED)
def test_a_header_s_voxels_are_fenced_as_the_header_is(case: str, tmp_path: Path) -> None:
    name, text, data = DETACHED[case]
    table = save_table(tmp_path / "in" / "scans.csv", ("volume", "report"), [[f"deep/{name}", "x"]])
    header = tmp_path / "in" / "deep" / name
    header.parent.mkdir()
    for inside in (data, f"more/{data}", f"../{data}", f"./{data}"):
        header.write_text(text.format(inside))
        assert len(read_items(table, "manifest", 0.1)) == 1, inside
    for outside in (f"../../{data}", f"/etc/{data}", f"../../inside/{data}", f"more/../../../{data}"):
        header.write_text(text.format(outside))
        with refused("path-outside", field="volume", value=1):
            read_items(table, "manifest", 0.1)
    header.write_text(text.format(f"../../other/{data}"))
    assert len(read_items(table, "manifest", 0.1, roots=[str(tmp_path / "other")])) == 1


def test_voxels_within_the_header_s_file_lead_nowhere(tmp_path: Path) -> None:
    table = save_table(tmp_path / "scans.csv", ("volume", "report"), [["a.mha", "x"], ["b.nrrd", "x"]])
    (tmp_path / "a.mha").write_bytes(META.encode() + b"ElementDataFile = LOCAL\n\x00/etc/passwd\ndata file: ../x\n")
    save_table(table, ("volume", "report"), [["a.mha", "x"], ["b.nrrd", "x"], ["c.mhd", "x"]])
    (tmp_path / "c.mhd").write_bytes(META.encode() + b"ElementDataFile =  \n")
    (tmp_path / "b.nrrd").write_bytes(NRRD.encode() + b"\nElementDataFile = ../x\ndata file: ../x\n")
    assert len(read_items(table, "manifest", 0.1)) == 3


def test_ids_default_to_the_file_s_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"volume": ["x.mha", "y.nii.gz"], "report": ["a", None], "volume_id": ["mine", None]})
    table.to_parquet(tmp_path / "scans.parquet")
    items = read_items(tmp_path / "scans.parquet", "manifest", 0.1)
    assert [(i.volume_id, i.scan_id, i.patient_id, i.report) for i in items] == [
        ("mine", "mine", "mine", "a"),
        ("y", "y", "y", ""),
    ]


def test_a_manifest_of_every_kind_of_volume(tmp_path: Path) -> None:
    header = ("volume", "report", "series", "volume_id")
    (tmp_path / "1.2.840.9").mkdir()
    items = manifest(
        tmp_path,
        ["study", "x", "1.2.3", "soft"],
        ["study", "x", "1.2.4", "sharp"],
        ["deep/trn00001.npz", "x", "", ""],
        ["one.series", "x", "", ""],
        ["1.2.840.9", "x", "", ""],
        ["s3://bucket/deep/two.nii.gz", "x", "", ""],
        header=header,
    )
    assert [(i.volume_id, i.path, i.series) for i in items] == [
        ("1.2.840.9", str(tmp_path / "1.2.840.9"), None),
        ("one", str(tmp_path / "one.series"), None),
        ("sharp", str(tmp_path / "study"), "1.2.4"),
        ("soft", str(tmp_path / "study"), "1.2.3"),
        ("trn00001", str(tmp_path / "deep/trn00001.npz"), None),
        ("two", "s3://bucket/deep/two.nii.gz", None),
    ]
    assert items[-1].source == "s3://bucket/deep/two.nii.gz"
    # Two series of a folder need ids of their own.
    with refused("repeated-ids", value=("study",)):
        manifest(tmp_path, ["study", "x", "1.2.3"], ["study", "x", "1.2.4"], header=header[:3])


def test_splits_follow_the_patient_and_nothing_else(tmp_path: Path) -> None:
    header = ("volume", "report", "patient_id")
    rows: list[list[object]] = [[f"v{i}.nii.gz", "x", f"p{i // 2}"] for i in range(2000)]
    once = {i.volume_id: i for i in manifest(tmp_path, *rows, header=header)}
    again = manifest(tmp_path, *rows[:999:-1], header=header)
    assert all(once[i.volume_id].split == i.split for i in again)
    counts = pd.Series([i.split for i in once.values()]).value_counts(normalize=True)
    assert counts["train"] == pytest.approx(0.8, abs=0.04)
    assert counts["validation"] == pytest.approx(0.1, abs=0.03)
    assert all(once[f"v{i}"].split == once[f"v{i + 1}"].split for i in range(0, 2000, 2))
    assert {i.split for i in manifest(tmp_path, *rows, header=header, fraction=0.0)} == {"train", "test"}


GOOD: list[object] = ["a.nii.gz", "x", "s1", "p1", "train", 0, 0, 1]


@pytest.mark.parametrize(
    ("rows", "code", "named"),
    [
        ([GOOD, GOOD], "repeated-ids", {"value": ("a",)}),
        ([GOOD, ["b.nii.gz", "x", "s2", "p1", "test", 0, 0, 1]], "conflicting-rows", {"field": "split", "value": "b"}),
        (
            [GOOD, ["b.nii.gz", "x", "s1", "p2", "train", 0, 0, 1]],
            "conflicting-rows",
            {"field": "patient_id", "value": "b"},
        ),
        ([["a.nii.gz", "x", "s1", "p1", "valid", 0, 0, 1]], "unknown-split", {"field": "split", "value": "valid"}),
        ([GOOD, ["", "x", "s2", "p2", "train", 0, 0, 1]], "no-path", {"field": "volume", "value": 2}),
        ([["a.nii.gz", "x", "s1", "p1", "train", 2, 0, 1]], "bad-label", {"field": "Lung nodule", "value": "2"}),
        ([], "no-volumes", {"value": "manifest"}),
    ],
)
def test_manifests_that_contradict_themselves(
    rows: list[list[object]], code: str, named: dict[str, object], tmp_path: Path
) -> None:
    with refused(code, **named):
        manifest(tmp_path, *rows)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with refused("missing-column", field="report", value=str(tmp_path / "scans.csv")):
        manifest(tmp_path, ["a", "b"], header=("volume", "text"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80,\n")
    for name, code in (
        ("empty.csv", "empty-table"),
        ("broken.parquet", "unreadable-table"),
        ("binary.csv", "unreadable-table"),
    ):
        with refused(code, field=str(tmp_path / name)) as refusal:
            read_items(tmp_path / name, "manifest", 0.1)
        assert "\n" not in str(refusal.value)
    for source, layout, fraction, code, field in (
        (tmp_path / "absent.csv", "manifest", 0.1, "no-source", str(tmp_path / "absent.csv")),
        (tmp_path, "dicomm", 0.1, "unknown-layout", "--layout"),
        (tmp_path, "manifest", 1.5, "validation-fraction", "--validation-fraction"),
    ):
        with refused(code, field=field):
            read_items(source, layout, fraction)


def ct_rate(root: Path, *volumes: str) -> Path:
    """A tree with empty volumes, reports of the first reconstructions only, metadata and labels of all."""
    for volume in volumes:
        folder, name = volume.split("/")
        patient, scan = "_".join(name.split("_")[:2]), "_".join(name.split("_")[:3])
        path = root / "dataset" / folder / patient / scan / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = [volume.split("/")[1] for volume in volumes]
    dataset = root / "dataset"
    reports = ("VolumeName", "Findings_EN", "Impressions_EN")
    rows: list[list[object]] = [[n, "Clear lungs.", "Not given."] for n in names if n.endswith("_1.nii.gz")]
    save_table(dataset / "radiology_text_reports" / "train_reports.csv", reports, rows)
    save_table(dataset / "metadata" / "a_metadata.csv", METADATA, [[n, 1, -1024, "[2, 2]", 4, ""] for n in names])
    labels = dataset / "multi_abnormality_labels"
    save_table(labels / "train_predicted_labels.csv", ("VolumeName", "Lung nodule"), [[n, 1] for n in names])
    save_table(labels / "valid_lt_labels.csv", ("VolumeName", "Pneumothorax"), [[n, 0] for n in names[:1]])
    return root


def test_ct_rate_s_tree(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz", "train/train_1_a_2.nii.gz", "valid_fixed/valid_9_b_1.nii.gz")
    items = read_items(root, "ct-rate", 0.0)
    assert [i.to_dict() for i in items] == [i.to_dict() for i in read_items(root / "dataset", "ct-rate", 0.0)]
    first, second, valid = items
    assert (first.volume_id, first.scan_id, first.patient_id) == ("train_1_a_1", "train_1_a", "train_1")
    assert first.report == second.report == "Findings: Clear lungs."
    assert [i.split for i in items] == ["train", "train", "test"]
    assert first.labels == {"Lung nodule": 1, "Pneumothorax": 0}
    assert second.labels == {"Lung nodule": 1}
    assert first.metadata is not None
    assert first.metadata["RescaleIntercept"] == "-1024"
    assert valid.source == "valid_fixed/valid_9/valid_9_b/valid_9_b_1.nii.gz"
    assert {i.split for i in read_items(root, "ct-rate", 0.999)} == {"validation", "test"}


def test_ct_rate_s_reports_may_lie_elsewhere(tmp_path: Path) -> None:
    root = ct_rate(tmp_path / "a", "train/train_1_a_1.nii.gz", "train/train_1_a_2.nii.gz", "valid/valid_9_b_1.nii.gz")
    reports = save_table(tmp_path / "r.csv", ("VolumeName", "report"), [["train_1_a_2.nii.gz", "New."]])
    texts = {i.volume_id: i.report for i in read_items(root, "ct-rate", 0.0, reports=reports)}
    old = "Findings: Clear lungs."
    assert texts == {"train_1_a_1": old, "train_1_a_2": "New.", "valid_9_b_1": old}
    for table in (root / "dataset" / "radiology_text_reports").iterdir():
        table.unlink()
    texts = {i.volume_id: i.report for i in read_items(root, "ct-rate", 0.0, reports=reports)}
    assert texts == {"train_1_a_1": "New.", "train_1_a_2": "New.", "valid_9_b_1": ""}
    labels = save_table(tmp_path / "l.csv", ("VolumeName", "Lung nodule"), [["train_1_a_1.nii.gz", 0]])
    first, *_ = read_items(root, "ct-rate", 0.0, reports=reports, labels=labels)
    assert first.labels == {"Lung nodule": 0, "Pneumothorax": 0}


def test_a_volume_without_a_row_of_metadata_has_none(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz", "train/train_2_a_1.nii.gz")
    file = root / "dataset" / "metadata" / "a_metadata.csv"
    pd.read_csv(file)[:1].to_csv(file, index=False)
    first, second = read_items(root, "ct-rate", 0.0)
    assert first.metadata is not None
    assert set(first.metadata.values()) != {None}
    assert second.metadata == dict.fromkeys(first.metadata)


LT = ("VolumeName", "Pneumonia", "Rib fracture")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", ["dataset/multi_abnormality_labels", "dataset", "."])
def test_ct_rate_lt_s_table_is_found_by_its_published_name(where: str, packed: bool, tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz", "valid/valid_9_b_1.nii.gz")
    table = save_table(root / where / "CT-RATE-LT-label.csv", LT, [["valid_9_b_1.nii.gz", 1, 0]])
    if packed:
        table.with_suffix(".csv.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    reading = read_archive(root, "ct-rate", 0.0)
    assert reading.items[1].labels == {"Lung nodule": 1, "Pneumonia": 1, "Rib fracture": 0}
    (account,) = [account for account in reading.accounts if "LT-label.csv" in account.path]
    assert (account.rows, account.matched, account.without, account.unused) == (1, 1, 1, "")


def test_a_label_file_that_is_there_and_not_used_is_named(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz")
    folder = root / "dataset" / "multi_abnormality_labels"
    save_table(folder / "scores.csv", LT, [["train_1_a_1.nii.gz", 0.1, 0.9]])
    save_table(root / "my labels.csv", ("name", "heart"), [["x", 1]])
    reading = read_archive(root, "ct-rate", 0.0)
    assert reading.items[0].labels == {"Lung nodule": 1, "Pneumothorax": 0}
    unused = {Path(account.path).name: account.line() for account in reading.accounts if account.unused}
    assert set(unused) == {"scores.csv", "my labels.csv"}
    assert all("not used" in line and name in line for name, line in unused.items())


@pytest.mark.parametrize(
    ("folder", "header", "first", "second"),
    [
        ("multi_abnormality_labels", ("VolumeName", "Lung nodule"), [0], [1]),
        ("radiology_text_reports", ("VolumeName", "Findings_EN", "Impressions_EN"), ["Other.", ""], []),
        ("metadata", METADATA, [1, -8192, "[2, 2]", 4, ""], []),
    ],
)
def test_two_tables_that_disagree_are_refused_by_both_names(
    folder: str, header: tuple[str, ...], first: list[object], second: list[object], tmp_path: Path
) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz")
    more = root / "dataset" / folder / "more_labels_reports_metadata.csv"
    save_table(more, header, [["train_1_a_1.nii.gz", *first]])
    with refused("disagreeing-tables") as refusal:
        read_items(root, "ct-rate", 0.1)
    assert all(name in str(refusal.value) for name in ("more_labels_reports_metadata.csv", "row 1"))
    assert "train_1_a_1" not in str(refusal.value).replace(str(root), "")
    if second:
        save_table(more, header, [["train_1_a_1.nii.gz", *second]])
        assert len(read_items(root, "ct-rate", 0.1)) == 1, "two tables that agree"


def test_a_table_without_a_text_is_not_among_those_that_disagree(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz")
    folder, header = root / "dataset" / "radiology_text_reports", ("VolumeName", "Findings_EN", "Impressions_EN")
    first, second = folder / "0_reports.csv", folder / "zz_reports.csv"
    for file, text in ((first, ""), (second, "Other.")):
        save_table(file, header, [["train_1_a_1.nii.gz", text, ""]])
    with refused("disagreeing-tables") as refusal:
        read_items(root, "ct-rate", 0.1)
    assert str(first) not in refusal.value.value
    assert str(second) in refusal.value.value


def test_both_releases_of_one_volume_are_one_too_many(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz", "train_fixed/train_1_a_1.nii.gz")
    with refused("repeated-ids", value=("train_1_a_1",)):
        read_items(root, "ct-rate", 0.1)


def test_ct_rate_s_tables_must_be_its_own(tmp_path: Path) -> None:
    root = ct_rate(tmp_path, "train/train_1_a_1.nii.gz")
    labels = root / "dataset" / "multi_abnormality_labels" / "other_labels.csv"
    save_table(labels, ("VolumeName", "Broken heart"), [["train_1_a_1.nii.gz", 1]])
    with refused("no-labels", field=str(labels)):
        read_items(root, "ct-rate", 0.1)
    labels.unlink()
    reports = root / "dataset" / "radiology_text_reports" / "train_reports.csv"
    save_table(reports, ("VolumeName", "Findings"), [["train_1_a_1.nii.gz", "x"]])
    with refused("missing-column", field="Findings_EN", value=str(reports)):
        read_items(root, "ct-rate", 0.1)
    reports.unlink()
    with refused("no-table", field=str(reports.parent), value="*reports*.csv"):
        read_items(root, "ct-rate", 0.1)
