"""A tree of DICOM folders: what becomes a volume, what is refused, and that nobody can be named from it."""

from __future__ import annotations

import json
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from archives import read_items
from refusals import refused

from brgsa.volumes import read_volume
from brgsa_platform.layouts import Item, identity_key, pseudonym
from scans import chest, save_dicom

KEY = b"a key of thirty-two bytes, or so"
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients in one folder, one with two kernels and a localizer; a third patient elsewhere, with a slice missing.

    It is read only: tests that change an archive take `tree`.
    """
    root = tmp_path_factory.mktemp("dicom") / "archive"
    mixed = root / "mixed"
    doe = {"PatientID": "doe", "StudyInstanceUID": "1.1", "AccessionNumber": "acc1"}
    save_dicom(mixed, chest(), series="1.1.1", **doe)
    save_dicom(mixed, chest(seed=1), series="1.1.2", **doe)
    save_dicom(mixed, chest()[:, :, :1], series="1.1.3", ImageType=LOCALIZER, **doe)
    save_dicom(mixed, chest(seed=2), series="1.2.1", PatientID="roe", StudyInstanceUID="1.2", AccessionNumber="")
    missing = {"PatientID": "poe", "StudyInstanceUID": "1.3", "AccessionNumber": "acc3"}
    save_dicom(root / "b" / "study3", chest(), series="1.3.1", **missing)[4].unlink()
    (root / "b" / "readme.txt").write_text("A study a folder.")
    return root


@pytest.fixture
def tree(archive: Path, tmp_path: Path) -> Path:
    """A copy of `archive`."""
    return Path(shutil.copytree(archive, tmp_path / "archive"))


def listed(root: Path, **tables: Path) -> dict[str, Item]:
    items = {item.series or item.volume_id: item for item in read_items(root, "dicom", 0.1, key=KEY, **tables)}
    return dict(sorted(items.items()))


def test_each_series_is_a_volume_or_refused_with_a_reason(archive: Path) -> None:
    items = listed(archive)
    assert list(items) == ["1.1.1", "1.1.2", "1.1.3", "1.2.1", "1.3.1"]
    assert {uid: item.refused.partition(":")[0].partition(",")[0] for uid, item in items.items() if item.refused} == {
        "1.1.3": "it is a localizer (scout)",
        "1.3.1": "slices are missing",
    }
    for uid, seed in (("1.1.1", 0), ("1.1.2", 1), ("1.2.1", 2)):
        volume = read_volume(items[uid].path, items[uid].metadata, items[uid].series)
        np.testing.assert_array_equal(volume.array, chest(seed=seed))
    assert len({items[uid].scan_id for uid in ("1.1.1", "1.1.2", "1.1.3")}) == 1
    assert len({item.scan_id for item in items.values()}) == len({item.patient_id for item in items.values()}) == 3


def test_identifiers_are_hashed_and_nothing_else_is_kept(archive: Path) -> None:
    items = listed(archive)
    assert items["1.1.1"].volume_id == pseudonym(KEY, "series", "1.1.1")
    assert items["1.1.1"].patient_id == pseudonym(KEY, "patient", "doe")
    assert items["1.1.1"].scan_id == pseudonym(KEY, "scan", "doe", "acc1")
    assert items["1.2.1"].scan_id == pseudonym(KEY, "scan", "roe", "1.2"), "without an accession the study counts"
    for item in items.values():
        stored = {name: value for name, value in item.to_dict().items() if name not in ("path", "series", "folders")}
        told = json.dumps(stored).lower()
        assert not [
            word for word in ("doe", "roe", "poe", "acc", "1.1", "1.3.", "secret", "mixed", "study") if word in told
        ]
        assert item.source == f"dicom/{item.volume_id}"
    again = {item.volume_id for item in read_items(archive, "dicom", 0.1, key=b"another key of many bytes")}
    assert not again & {item.volume_id for item in items.values()}


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        ("SeriesInstanceUID", {"1.1.1": "A", "1.2.1": "B"}),
        ("StudyInstanceUID", {"1.1": "A", "1.2": "B"}),
        ("AccessionNumber", {"acc1": "A"}),
        ("accession", {"acc1": "A", "acc3": "C"}),
        ("scan_id", {"study3": "C"}),  # the folder's name
        ("scan_id", {"b/study3": "C"}),
    ],
)
def test_reports_join_on_what_stands_in_the_header(
    column: str, ids: dict[str, str], archive: Path, tmp_path: Path
) -> None:
    table = tmp_path / "reports.csv"
    pd.DataFrame({column: list(ids), "report": list(ids.values())}).to_csv(table, index=False)
    found = {uid: item.report for uid, item in listed(archive, reports=table).items() if item.report}
    expected = {
        "1.1.1": {"1.1.1": "A"},
        "1.1": {"1.1.1": "A", "1.1.2": "A", "1.1.3": "A"},
        "acc1": {"1.1.1": "A", "1.1.2": "A", "1.1.3": "A"},
        "1.2.1": {"1.2.1": "B"},
        "1.2": {"1.2.1": "B"},
        "acc3": {"1.3.1": "C"},
        "study3": {"1.3.1": "C"},
        "b/study3": {"1.3.1": "C"},
    }
    assert found == {uid: text for name in ids for uid, text in expected[name].items()}


def test_labels_join_too(archive: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    pd.DataFrame({"AccessionNumber": ["acc1"], "Lung nodule": [1], "Empyema": [""]}).to_csv(table, index=False)
    items = listed(archive, labels=table)
    assert items["1.1.2"].labels == {"Lung nodule": 1, "Empyema": None}
    assert items["1.2.1"].labels == {}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with accessions 1, 2, 3. Patients 1 and 2 have their series in a folder "2", patient 3 in "9"."""
    root = tmp_path_factory.mktemp("numbered")
    for n, folder in (("1", "2"), ("2", "2"), ("3", "9")):
        tags = {"PatientID": f"p{n}", "StudyInstanceUID": f"1.{n}", "AccessionNumber": n}
        save_dicom(root / f"patient{n}" / folder, chest(seed=int(n)), series=f"1.{n}.1", **tags)
    return root


@pytest.mark.parametrize(
    ("column", "ids", "expected"),
    [
        ("AccessionNumber", ["1", "2"], {"1.1.1": "0", "1.2.1": "1"}),
        ("accession", ["2"], {"1.2.1": "0"}),
        (
            "scan_id",
            ["1", "2"],
            {"1.1.1": "0", "1.2.1": "1"},
        ),  # "2" names two patients' folders, so it is no folder's id
        ("AccessionNumber", ["3", "9"], {"1.3.1": "0"}),  # 9 is a folder and no accession
        ("folder", ["9"], {"1.3.1": "0"}),
        ("folder", ["patient1/2", "patient2/2"], {"1.1.1": "0", "1.2.1": "1"}),
        ("PatientID", ["p3"], {"1.3.1": "0"}),
    ],
)
def test_a_folder_is_no_accession(
    column: str, ids: list[str], expected: dict[str, str], numbered: Path, tmp_path: Path
) -> None:
    table = tmp_path / "reports.csv"
    pd.DataFrame({column: ids, "report": [str(i) for i in range(len(ids))]}).to_csv(table, index=False)
    assert {uid: item.report for uid, item in listed(numbered, reports=table).items() if item.report} == expected


@pytest.mark.parametrize(
    ("column", "ids", "code"),
    [
        ("folder", ["2"], "ambiguous-id"),  # whose?
        ("scan_id", ["1", "9"], "ambiguous-ids"),  # an accession and a folder
        ("AccessionNumber", ["9"], "unmatched-reports"),
        ("accession", ["9"], "unmatched-reports"),
        ("PatientID", ["2"], "unmatched-reports"),
    ],
)
def test_ids_that_may_be_two_patients_are_refused(
    column: str, ids: list[str], code: str, numbered: Path, tmp_path: Path
) -> None:
    table = tmp_path / "reports.csv"
    pd.DataFrame({column: ids, "report": ids}).to_csv(table, index=False)
    with refused(code):
        listed(numbered, reports=table)


def test_an_accession_of_two_patients_is_refused(tmp_path: Path) -> None:
    for n in "12":
        tags = {"PatientID": f"p{n}", "StudyInstanceUID": f"1.{n}", "AccessionNumber": "7"}
        save_dicom(tmp_path / "archive" / n, chest(seed=int(n)), series=f"1.{n}.1", **tags)
    table = tmp_path / "reports.csv"
    for column, code in (("AccessionNumber", "ambiguous-id"), ("StudyInstanceUID", "")):
        pd.DataFrame({column: ["7" if code else "1.1"], "report": ["A"]}).to_csv(table, index=False)
        if code:
            with refused(code, field=column, value=1):
                listed(tmp_path / "archive", reports=table)
        else:
            found = listed(tmp_path / "archive", reports=table)
            assert {uid: item.report for uid, item in found.items()} == {"1.1.1": "A", "1.2.1": ""}


def test_a_patient_written_in_two_ways_stands_in_one_split(tmp_path: Path) -> None:
    for n, name in enumerate(("MRN007", "mrn7", "MRN7 ")):
        tags = {"PatientID": name, "StudyInstanceUID": f"1.{n}", "AccessionNumber": f"a{n}"}
        save_dicom(tmp_path / str(n), chest(seed=n), series=f"1.{n}.1", **tags)
    for seed in range(12):
        items = read_items(tmp_path, "dicom", 0.5, key=b"a key of thirty-two bytes, or so" + bytes([seed]))
        assert len({item.split for item in items}) == 1


def test_a_series_over_several_folders_is_put_together(tree: Path) -> None:
    before = listed(tree)
    shutil.copytree(tree / "b", tree / "copy")  # a second copy says nothing new
    half = tree / "half"
    half.mkdir()
    for file in sorted((tree / "mixed").glob("1.1.1-*"))[10:]:
        file.rename(half / file.name)
    shutil.copy(half / "1.1.1-012.dcm", tree / "mixed")
    items = listed(tree)
    assert {uid: (item.volume_id, item.refused) for uid, item in items.items()} == {
        uid: (item.volume_id, item.refused) for uid, item in before.items()
    }
    spread = items["1.1.1"]
    assert spread.folders == (str(half), str(tree / "mixed"))
    np.testing.assert_array_equal(read_volume(spread.path, None, spread.series, folders=spread.folders).array, chest())
    # What does not fit is that series's fault alone.
    (tree / "mixed" / "1.1.1-003.dcm").unlink()
    assert {uid: bool(item.refused) for uid, item in listed(tree).items()} == {
        "1.1.1": True,
        "1.1.2": False,
        "1.1.3": True,
        "1.2.1": False,
        "1.3.1": True,
    }


def test_one_uid_in_two_patients_is_two_volumes(tree: Path) -> None:
    doe, moe = ({"PatientID": name, "StudyInstanceUID": f"1.{name}"} for name in ("2", "3"))
    save_dicom(tree / "same", chest(seed=5), series="9.9", **doe)
    for file in (tree / "same").iterdir():
        file.rename(file.with_name(f"a{file.name}"))
    save_dicom(tree / "same", chest(seed=6), series="9.9", **moe)
    save_dicom(tree / "else", chest(seed=7), series="9.9", PatientID="4", StudyInstanceUID="1.4")
    items = [item for uid, item in listed(tree).items() if uid.startswith("9.9")]
    alone = list(read_items(tree / "else", "dicom", 0.1, key=KEY))
    everyone = {
        item.volume_id: item for item in read_items(tree, "dicom", 0.1, key=KEY) if "9.9" in (item.series or "")
    }
    assert len(everyone) == len({item.patient_id for item in everyone.values()}) == 3
    assert len(items) == 3
    assert alone[0].patient_id in {item.patient_id for item in everyone.values()}
    arrays = [read_volume(i.path, None, i.series, folders=i.folders).array for i in everyone.values()]
    for seed in (5, 6, 7):
        assert sum(np.array_equal(array, chest(seed=seed)) for array in arrays) == 1


def test_links_to_folders_are_followed_once(tree: Path) -> None:
    before = listed(tree)
    (tree / "link").symlink_to(tree / "mixed")
    (tree / "mixed" / "round").symlink_to(tree)
    assert {uid: item.volume_id for uid, item in listed(tree).items()} == {
        uid: item.volume_id for uid, item in before.items()
    }
    outside = tree.parent / "outside"
    (tree / "b").rename(outside)
    (tree / "elsewhere").symlink_to(outside)
    assert set(listed(tree)) == set(before)


def test_folders_that_cannot_be_read_do_not_vanish(tree: Path) -> None:
    broken = tree / "broken"
    broken.mkdir()
    (broken / "1.dcm").write_bytes(b"")
    (item,) = [item for item in listed(tree).values() if not item.series]
    assert "no DICOM header" in item.refused
    (tree / "none").mkdir()
    with refused("no-volumes", field=str(tree / "none")):
        read_items(tree / "none", "dicom", 0.1, key=KEY)
    with refused("no-id-key", field="--id-key"):
        read_items(tree, "dicom", 0.1)


def test_several_processes_give_what_one_gives(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = read_items(archive, "dicom", 0.1, key=KEY)
    monkeypatch.setattr("brgsa_platform.layouts.dicom.FOLDERS_PER_WORKER", 1)
    assert read_items(archive, "dicom", 0.1, key=KEY) == one


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_is_the_owner_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRGSA_ID_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = identity_key(None)
    file = tmp_path / ".config" / "brgsa" / "id-key"
    assert len(made) == 32
    assert file.read_bytes() == made == identity_key(None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["id-key"]
    (tmp_path / "mine").write_bytes(b"sixteen bytes at least")
    assert identity_key(tmp_path / "mine") == b"sixteen bytes at least"
    monkeypatch.setenv("BRGSA_ID_KEY", "from the environment")
    assert identity_key(tmp_path / "mine") == b"from the environment"


def test_runs_that_start_at_once_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRGSA_ID_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    start = threading.Barrier(8)

    def run(_: int) -> bytes:
        start.wait()
        return identity_key(None)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(run, range(8)))) == 1


def test_keys_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRGSA_ID_KEY", raising=False)
    with refused("id-key-unusable", field=str(tmp_path / "absent")):
        identity_key(tmp_path / "absent")
    (tmp_path / "short").write_bytes(b"1234")
    with refused("id-key-short", field=str(tmp_path / "short"), value=4):
        identity_key(tmp_path / "short")
    monkeypatch.setenv("BRGSA_ID_KEY", "1234")
    with refused("id-key-short", field="BRGSA_ID_KEY", value=4):
        identity_key(None)


# --- real series ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_a_real_study_is_two_volumes_of_one_scan(shared_data: Path) -> None:
    items = read_items(shared_data / "dicom", "dicom", 0.1, key=KEY)
    assert len(items) == 2
    assert [item.refused for item in items] == ["", ""]
    assert len({item.scan_id for item in items}) == len({item.split for item in items}) == 1
    assert "Lung_Dx" not in json.dumps([item.to_dict() for item in items])
