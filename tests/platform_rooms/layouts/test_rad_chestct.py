"""RAD-ChestCT's folder: volumes, its metadata CSV, and labels in CT-RATE's wording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from archives import read_items
from refusals import refused

from brgsa.labels import CT_RATE, RAD_CHESTCT
from brgsa.volumes import read_volume
from brgsa_platform.layouts import Item, read_archive
from brgsa_platform.layouts.tables.label_columns import RAD_CHESTCT_SOURCES
from scans import chest

METADATA = "CT_Scan_Metadata_Complete_35747.csv"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three scans of two patients, with the tables that lie beside them."""
    root = tmp_path / "rad"
    (root / "images").mkdir(parents=True)
    names = ["trn00001", "trn00002", "tst00003"]
    for seed, name in enumerate(names):
        ct = chest(seed=seed).transpose(2, 1, 0)[::-1]
        np.savez_compressed(root / "images" / f"{name}.npz", ct=ct)
    rows = {
        "VolumeAcc_DEID": [f"{name}.npz" for name in names],
        "NoteAcc_DEID": names,
        "MRN_DEID": ["mrn1", "mrn1", "mrn2"],
        "final_spacing": 5.0,
        "orig_orientation": "1,0,0,0,1,0",
        "orig_slope": 1,
        "orig_inter": -1024,
    }
    pd.DataFrame(rows).to_csv(root / METADATA, index=False)
    labels = {"NoteAcc_DEID": names[:2], **{name: [1.0, 0.0] for name in RAD_CHESTCT}}
    pd.DataFrame(labels).to_csv(root / "rad_chestct_labels.csv", index=False)
    own = {"NoteAcc_DEID": names, "nodule*right_upper": 1, "calcification*aorta": 0}
    pd.DataFrame(own).to_csv(root / "imgtrain_Abnormality_and_Location_Labels.csv", index=False)
    return root


def listed(root: Path, **tables: Path) -> list[Item]:
    return read_items(root, "rad-chestct", 0.1, **tables)


def test_the_archive_s_volumes(archive: Path) -> None:
    items = listed(archive)
    assert [(i.volume_id, i.scan_id, i.patient_id, i.split, i.source) for i in items] == [
        ("trn00001", "trn00001", "mrn1", "test", "images/trn00001.npz"),
        ("trn00002", "trn00002", "mrn1", "test", "images/trn00002.npz"),
        ("tst00003", "tst00003", "mrn2", "test", "images/tst00003.npz"),
    ]
    assert items[0].labels == dict.fromkeys(RAD_CHESTCT, 1)
    assert items[1].labels == dict.fromkeys(RAD_CHESTCT, 0)
    assert items[2].labels == {}
    assert all(item.unreported and item.report == "" and item.refused == "" for item in items)
    volume = read_volume(items[1].path, items[1].metadata)
    np.testing.assert_array_equal(volume.array, chest(seed=1))
    # orig_slope and orig_inter are the scanner's; the arrays are HU, and the table's rescale is never applied.
    assert volume.flags == ("rescale:header", "geometry:csv")


def test_tables_beside_it_win(archive: Path, tmp_path: Path) -> None:
    pd.DataFrame({"NoteAcc_DEID": ["trn00001"], "report": ["Clear."]}).to_csv(tmp_path / "reports.csv", index=False)
    pd.DataFrame({"volume_id": ["trn00001.npz"], "Lung nodule": [0]}).to_csv(tmp_path / "labels.csv", index=False)
    first, second, _ = listed(archive, reports=tmp_path / "reports.csv", labels=tmp_path / "labels.csv")
    assert (first.report, first.unreported) == ("Clear.", False)
    assert (second.report, second.unreported) == ("", True)
    assert first.labels == {**dict.fromkeys(RAD_CHESTCT, 1), "Lung nodule": 0}


def test_the_archive_s_own_labels_where_no_others_are_there(archive: Path) -> None:
    used, unused = "imgtrain_Abnormality_and_Location_Labels.csv", "rad_chestct_labels.csv"
    named = {Path(a.path).name: a.unused for a in read_archive(archive, "rad-chestct", 0.1).accounts if a.unused}
    assert list(named) == [used]
    assert unused in named[used]
    (archive / unused).unlink()
    reading = read_archive(archive, "rad-chestct", 0.1)
    # The fixture's table lacks nodulegr1cm: a nodule that is there is told, the absence of one would not be.
    assert [item.labels for item in reading.items] == [{"Calcification": 0, "Lung nodule": 1}] * 3
    assert not [account for account in reading.accounts if account.unused]


def own_table(path: Path, names: list[str]) -> Path:
    """The archive's own 84 columns as BrgSA's repository publishes them; the first volume has a stent, a hernia, a scar."""
    present = {"stent", "hernia", "scarring", "septal_thickening"}
    sources = [source for sources in RAD_CHESTCT_SOURCES.values() for source in sources]
    columns = {s: [s in present, *[False] * (len(names) - 1)] for s in [*sources, "pneumonia", "other_path"]}
    pd.DataFrame({"NoteAcc_DEID": names, **columns}).to_csv(path, index=False)
    return path


def test_the_archive_s_own_table_beside_it(archive: Path, tmp_path: Path) -> None:
    raw = own_table(tmp_path / "merged_abnormality_labels_with_id.csv", ["trn00001", "trn00002", "trn99999"])
    (archive / "rad_chestct_labels.csv").unlink()
    (archive / "imgtrain_Abnormality_and_Location_Labels.csv").unlink()
    reading = read_archive(archive, "rad-chestct", 0.1, labels=raw)
    present = {
        "Medical material",
        "Hiatal hernia",
        "Pulmonary fibrotic sequela",
        "Interlobular septal thickening",
    }
    first, second, third = reading.items
    assert first.labels == {name: int(name in present) for name in RAD_CHESTCT}
    assert second.labels == dict.fromkeys(RAD_CHESTCT, 0)
    assert third.labels == {}
    account = reading.accounts[-1]
    assert (account.rows, account.matched, account.without) == (3, 2, 1)
    assert account.passed == ["pneumonia", "other_path"]
    assert account.taken["nodulegr1cm"] == "Lung nodule"


def test_the_published_table_of_eighteen_is_found_and_gives_the_sixteen(archive: Path) -> None:
    (archive / "rad_chestct_labels.csv").unlink()
    names = [f"trn0000{i}.nii.gz" for i in (1, 2)]
    columns = {name: [1, 0] for name in CT_RATE}
    columns["Mosaic attenuation pattern"] = [0, 0]  # as published: the archive never labelled it
    pd.DataFrame({"VolumeName": names, **columns}).to_csv(archive / "RAD-ChestCT18_ctrateStyle.csv", index=False)
    reading = read_archive(archive, "rad-chestct", 0.1)
    assert [item.labels for item in reading.items] == [dict.fromkeys(RAD_CHESTCT, 1), dict.fromkeys(RAD_CHESTCT, 0), {}]
    (account,) = [a for a in reading.accounts if a.role == "labels" and not a.unused]
    assert account.passed == ["Mosaic attenuation pattern"]
    assert account.taken["Coronary artery wall calcification"] == "Calcification"


def test_a_volume_without_a_row_is_refused(archive: Path) -> None:
    table = pd.read_csv(archive / METADATA)
    table[table.NoteAcc_DEID != "trn00002"].to_csv(archive / METADATA, index=False)
    reasons = {item.volume_id: item.refused for item in listed(archive)}
    assert "metadata CSV has no row" in reasons.pop("trn00002")
    assert set(reasons.values()) == {""}


def test_two_files_of_one_id(archive: Path) -> None:
    (archive / "more").mkdir()
    (archive / "images" / "trn00002.npz").rename(archive / "more" / "trn00001.npz")
    with refused("repeated-ids", value=("trn00001",)):
        listed(archive)


def test_tables_of_other_columns(archive: Path) -> None:
    labels = archive / "rad_chestct_labels.csv"
    pd.DataFrame({"NoteAcc_DEID": ["trn00001"], "nodule": [1]}).to_csv(labels, index=False)
    with refused("no-labels", field=str(labels)):
        listed(archive)
    pd.DataFrame({"number": ["trn00001"], "Lung nodule": [1]}).to_csv(labels, index=False)
    with refused("no-ids", field=str(labels)):
        listed(archive)
    labels.unlink()
    pd.read_csv(archive / METADATA).drop(columns="MRN_DEID").to_csv(archive / METADATA, index=False)
    with refused("missing-column", field="MRN_DEID", value=str(archive / METADATA)):
        listed(archive)
    (archive / METADATA).unlink()
    with refused("no-table", field=str(archive), value="*metadata*.csv"):
        listed(archive)
