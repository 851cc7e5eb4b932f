"""DICOM and RAD-ChestCT archives to stores: what comes through, what is set aside, and what names nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from archives import (
    SMALL,
    chest,
    contents,
    quarantine,
    save_manifest,
    save_rad_chestct,
    save_scan,
    save_table,
    volumes,
    write_store,
)
from refusals import refused

import scans
from brgsa.volumes import Geometry
from brgsa_platform.store.info import info
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection
from scans import save_dicom

pytestmark = pytest.mark.ray


@pytest.mark.shared
def test_two_real_series_of_a_study(ray_session: None, shared_data: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    reports = tmp_path / "reports.json"
    reports.write_text(json.dumps({"series2_B70f": "There is a lung mass.", "series3_B40f": "There is a lung mass."}))
    geometry = Geometry((3.0, 3.0, 8.0), (128, 128, 32))
    out = tmp_path / "store"
    result = prepare(shared_data / "dicom", "dicom", out, PrepareOptions(geometry, reports=reports, id_key=key))
    assert (sum(result.volumes.values()), result.quarantined) == (2, 0)
    index = Store.open(out).index().to_pylist()
    assert len({row["patient_id"] for row in index}) == len({row["scan_id"] for row in index}) == 1
    sharp, soft = volumes(out).values()
    assert abs(float(sharp.mean()) - float(soft.mean())) < 10, "the same patient on the same grid, two kernels"
    assert np.corrcoef(sharp.ravel(), soft.ravel())[0, 1] > 0.9
    everything = b"".join(contents(out).values())
    for name in (b"A0002", b"B70f", b"1.3.6.1", str(shared_data).encode()):
        assert name not in everything, "an identifier of the archive is in the store"


def test_a_lost_row_s_id_of_a_dicom_archive_is_shown_nowhere(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dicom(tmp_path / "in", scans.chest())
    (key := tmp_path / "key").write_bytes(b"0123456789abcdef")
    rows = [["secretacc", "A nodule."], ["secretlost", "No nodule."]]
    reports = save_table(tmp_path / "reports.csv", ("AccessionNumber", "report"), rows)
    out = tmp_path / "store"
    prepare(tmp_path / "in", "dicom", out, PrepareOptions(SMALL, reports=reports, id_key=key))
    assert Store.open(out).texts("report").popitem()[1] == "A nodule."
    assert "the first rows without a volume: row 2\n" in (out / "tables.log").read_text()
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], f"tags.`brgsa.data` = '{Store.open(out).fingerprint}'")[0]
    told = json.dumps([run.data.params, run.data.tags]) + "".join(capsys.readouterr())
    for name in ("secretlost", "secretacc", "secretpatient", "1.2.3"):
        assert name not in told.replace(str(tmp_path), "")
        assert name.encode() not in b"".join(contents(out).values())


@pytest.mark.shared
def test_a_series_with_a_lost_slice_is_quarantined(ray_session: None, shared_data: Path, tmp_path: Path) -> None:
    for folder in ("series2_B70f", "series3_B40f"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for slice_ in (shared_data / "dicom" / "A0002" / folder).iterdir():
            (tmp_path / "in" / folder / slice_.name).write_bytes(slice_.read_bytes())
    (tmp_path / "in" / "series2_B70f" / "1-12.dcm").unlink()
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    reports = save_table(
        tmp_path / "reports.csv", ("volume_id", "report"), [["series2_B70f", "A."], ["series3_B40f", "A."]]
    )
    result = prepare(tmp_path / "in", "dicom", tmp_path / "store", PrepareOptions(SMALL, reports=reports, id_key=key))
    assert (sum(result.volumes.values()), result.quarantined) == (1, 1)
    ((stage, _),) = quarantine(tmp_path / "store").values()
    assert stage == "list"


def test_an_archive_published_without_reports(ray_session: None, tmp_path: Path) -> None:
    archive = save_rad_chestct(tmp_path / "rad", 1)
    result = prepare(
        archive, "rad-chestct", tmp_path / "store", PrepareOptions(Geometry((1.6, 1.6, 1.6), (24, 24, 16)))
    )
    assert result.volumes == {"test": 1}, quarantine(tmp_path / "store")
    assert Store.open(tmp_path / "store").texts("report") == {"trn00000": ""}


def test_strict_refuses_what_contradicts_itself(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 2)
    hu = np.random.default_rng(1).integers(3000, 3060, (24, 22, 16)).astype(np.int16)  # no chest in HU
    save_scan(tmp_path / "in" / "s001.nii.gz", hu)
    lenient = prepare(manifest, "manifest", tmp_path / "lenient", PrepareOptions(SMALL))
    assert lenient.quarantined == 0
    assert "hu:implausible" in Store.open(tmp_path / "lenient").index(["flags"])["flags"].to_pylist()[1]
    strict = prepare(manifest, "manifest", tmp_path / "strict", PrepareOptions(SMALL, strict=True))
    assert (sum(strict.volumes.values()), strict.quarantined) == (1, 1)
    assert quarantine(tmp_path / "strict")["s001"][0] == "strict"


def test_strict_refuses_a_report_that_is_not_understood(tmp_path: Path) -> None:
    reports = ["Kein Pleuraerguss.", "No effusion.", "See dictated report."]
    save_manifest(tmp_path / "in", 3)
    rows = [[f"s{i:03d}.nii.gz", text] for i, text in enumerate(reports)]
    manifest = save_table(tmp_path / "in" / "again.csv", ("volume", "report"), rows)
    assert list(volumes(write_store(manifest, tmp_path / "lenient"))) == ["s000", "s001", "s002"]
    strict = write_store(manifest, tmp_path / "strict", PrepareOptions(SMALL, strict=True))
    assert list(volumes(strict)) == ["s001"]
    assert {name: stage for name, (stage, _) in quarantine(strict).items()} == {"s000": "strict", "s002": "strict"}
    assert "Kein" not in "".join(reason for _, reason in quarantine(strict).values())


def test_several_series_in_a_row_s_folder_name_nobody(tmp_path: Path) -> None:
    """The reason goes into the store: no UIDs and no descriptions, and no option of another verb."""
    for series in ("1.2.3", "1.2.4"):
        save_dicom(tmp_path / "in" / "study", scans.chest(), series=series, SeriesDescription="Doe lung")
    manifest = save_table(tmp_path / "in" / "scans.csv", ("volume", "report"), [["study", "A nodule."]])
    stage, reason = quarantine(write_store(manifest, tmp_path / "store"))["study"]
    assert stage == "read"
    assert "2 CT series" in reason
    for word in ("1.2.3", "1.2.4", "Doe", "--series"):
        assert word not in reason


def test_a_size_that_no_chest_has_is_refused_or_trusted_and_flagged(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 2)
    save_scan(tmp_path / "in" / "s001.nii.gz", chest(1), spacing=(1.0, 1.0, 1.0))
    refusing = write_store(manifest, tmp_path / "refusing")
    assert list(volumes(refusing)) == ["s000"]
    stage, reason = quarantine(refusing)["s001"]
    assert stage == "read"
    assert "24×22×16 mm" in reason
    assert "--trust-geometry" in reason
    trusting = write_store(manifest, tmp_path / "trusting", PrepareOptions(SMALL, trust_geometry=True))
    assert list(volumes(trusting)) == ["s000", "s001"]
    assert "size:implausible 24×22×16 mm" in Store.open(trusting).index(["flags"])["flags"].to_pylist()[1]
    assert info(str(trusting)).flags["size:implausible"] == 1
    # It is another store, though one from before the option is as one without it.
    assert "trust_geometry" not in PrepareOptions(SMALL).settings()
    with refused("other-settings", value=("trust_geometry",)):
        prepare(manifest, "manifest", refusing, PrepareOptions(SMALL, trust_geometry=True))
    with refused("other-settings", value=("trust_geometry",)):
        prepare(manifest, "manifest", trusting, PrepareOptions(SMALL))


def test_other_interpolations_are_other_stores(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    stored = {}
    for kind in ("linear", "nearest", "cubic"):
        options = PrepareOptions(Geometry((3.0, 3.0, 6.0), (24, 24, 16), interpolation=kind))
        stored[kind] = volumes(write_store(manifest, tmp_path / kind, options))["s000"]
    assert not np.array_equal(stored["linear"], stored["nearest"])
    assert not np.array_equal(stored["linear"], stored["cubic"])
    rows = [Store.open(tmp_path / kind).index(["checksum"])["checksum"][0].as_py() for kind in stored]
    assert len(set(rows)) == 3
