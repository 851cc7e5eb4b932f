"""RAD-ChestCT's folder: volumes, its metadata CSV, and labels in CT-RATE's wording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refused

from brgsa.labels import RAD_CHESTCT
from brgsa.volumes import read_volume
from brgsa_platform.layouts import Item, read_layout
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
    return read_layout(root, "rad-chestct", 0.1, **tables)


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
