"""The page's addresses: a CT in, slices, scores and maps out; and what it refuses."""

from __future__ import annotations

import gzip
import io
import re
import resource
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny_models import PROMPTS, save_noise, save_tiny

from brgsa_platform.serving.page import desk as desks
from brgsa_platform.serving.page.app import PAGE, make_app
from brgsa_platform.serving.page.desk import Desk
from brgsa_platform.serving.page.serve import serve
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scorer import ScanOptions, Scorer
from scans import chest, save_dicom

LIMIT = 2_000_000
TYPE = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "epoch-0001")


@pytest.fixture
def page(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The page; afterwards nothing of what it received is on disk."""
    place = tmp_path / "uploads"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    app = make_app(Desk(Scorer(checkpoint)), LIMIT, ["127.0.0.1"])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
    assert list(place.iterdir()) == []


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_noise(tmp_path / "scan.nii.gz")


def send(page: TestClient, content: bytes) -> Any:
    return page.post("/scans", content=content, headers=TYPE)


def opened(page: TestClient, content: bytes) -> Any:
    answer = send(page, content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def zipped(compression: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def changed(content: bytes, **at: tuple[int, int]) -> bytes:
    """A zip of one member with other bytes: `local` and `central` are an offset in the member's two headers and its value."""
    made = bytearray(content)
    for mark, (place, value) in at.items():
        made[content.index({"local": b"PK\x03\x04", "central": b"PK\x01\x02"}[mark]) + place] = value
    return bytes(made)


def series(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{file.name}": file.read_bytes() for file in folder.iterdir()}


def test_scores_are_those_of_predict(page: TestClient, checkpoint: Path, scan: Path) -> None:
    told = opened(page, scan.read_bytes())
    assert (told["slices"], told["width_mm"], told["height_mm"]) == (10, 80, 80)
    rows = page.post(f"/scans/{told['id']}/scores", json={}).json()
    expected = {row.prompt: row for row in predict(checkpoint, scan).rows}
    assert {row["prompt"]: row["score"] for row in rows} == pytest.approx({k: v.score for k, v in expected.items()})
    assert [row["percentile"] for row in rows] == [1.0, 0.75, 0.0]
    (own,) = page.post(f"/scans/{told['id']}/scores", json={"prompts": ["There is a stent."]}).json()
    assert (own["prompt"], own["percentile"]) == ("There is a stent.", None)
    assert page.post(f"/scans/{told['id']}/scores", json={"prompts": [" "]}).json()["code"] == "empty-prompt"
    assert page.get("/model").json()["prompts"] == PROMPTS


def test_slices_are_the_model_s_in_a_window(page: TestClient, checkpoint: Path, scan: Path) -> None:
    told = opened(page, scan.read_bytes())
    hu = Scorer(checkpoint).read(scan).hu
    answer = page.get(f"/scans/{told['id']}/slices/3.png?low=-200&high=200")
    assert answer.headers["content-type"] == "image/png"
    grey = np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)
    expected = np.clip((hu[:, :, 3].T + 200) / 400, 0, 1) * 255
    assert grey == pytest.approx(expected, abs=0.5001)
    assert page.get(f"/scans/{told['id']}/slices/3.png?low=nan").status_code == 422


def test_a_map_is_as_strong_as_the_model_s_opinion(page: TestClient, scan: Path) -> None:
    told = opened(page, scan.read_bytes())
    found = [page.post(f"/scans/{told['id']}/maps", json={"prompt": prompt}).json() for prompt in PROMPTS]
    assert [one["opinion"] for one in found] == [0.5, 1.0, 0.0]
    strongest = [highest_alpha(page, told, one["map"]) for one in found]
    assert strongest[1] == pytest.approx(255 * 0.65, abs=1)
    assert strongest[0] == pytest.approx(255 * 0.65 / 2, abs=1)
    # No opinion: nothing is drawn.
    assert (strongest[2], found[2]["peak"]) == (0, None)
    unknown = page.post(f"/scans/{told['id']}/maps", json={"prompt": "There is a stent."}).json()
    assert unknown["opinion"] is None
    at_peak = page.get(f"/scans/{told['id']}/maps/{found[1]['map']}/{found[1]['peak']}.png")
    assert np.asarray(Image.open(io.BytesIO(at_peak.content)))[..., 3].max() == strongest[1]


def highest_alpha(page: TestClient, told: Any, made: str) -> int:
    slices = [page.get(f"/scans/{told['id']}/maps/{made}/{k}.png").content for k in range(told["slices"])]
    return max(int(np.asarray(Image.open(io.BytesIO(one)))[..., 3].max()) for one in slices)


def test_a_zip_of_a_dicom_series(page: TestClient, checkpoint: Path, tmp_path: Path) -> None:
    save_dicom(tmp_path / "lung", chest())
    save_dicom(tmp_path / "soft", chest(seed=1), series="1.2.4")
    # A name that points out of the folder decides nothing.
    told = opened(page, zipped(**series(tmp_path / "lung", "../../")))
    rows = page.post(f"/scans/{told['id']}/scores", json={}).json()
    expected = {row.prompt: row.score for row in predict(checkpoint, tmp_path / "lung").rows}
    assert {row["prompt"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-6)
    both = send(page, zipped(**series(tmp_path / "lung", "a/"), **series(tmp_path / "soft", "b/")))
    assert refusal(both) == (422, "several-series")
    assert "--series" not in both.json()["detail"]


DEFLATED = zipped(zipfile.ZIP_DEFLATED, a=bytes(range(256)))  # its data lie behind a header of 30 bytes and the name


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<html>not found</html>", "upload-not-image"),
        (b"", "upload-not-image"),
        (zipped(**{"page.html": b"<html>"}), "header-unreadable"),
        (zipped(a=b"x" * 1000)[:-30], "upload-damaged"),
        (changed(DEFLATED, local=(31, 0xFF)), "upload-damaged"),  # the first byte of the deflated data
        (changed(zipped(é=b"x"), central=(46, 0xFF)), "upload-damaged"),  # a name that is no UTF-8
        (changed(DEFLATED, central=(6, 0xFF)), "upload-damaged"),  # a version of zip that there is not
        (changed(DEFLATED, central=(8, 0x01)), "upload-encrypted"),
        (changed(DEFLATED, central=(8, 0x40)), "upload-encrypted"),
        (changed(DEFLATED, central=(8, 0x20)), "upload-compression"),
        (changed(DEFLATED, central=(10, 9)), "upload-compression"),  # deflate64
        (zipped(zipfile.ZIP_BZIP2, a=b"x" * 1000), "upload-compression"),
        (b"\x1f\x8b" + b"no gzip at all", "upload-damaged"),
        (gzip.compress(bytes(1000), mtime=0)[:-10], "upload-damaged"),
        (gzip.compress(bytes(1000), mtime=0), "not-an-image"),
        (changed(zipped(zipfile.ZIP_DEFLATED, **{"ct.npy": bytes(range(256))}), local=(36, 0xFF)), "file-damaged"),
    ],
)
def test_an_upload_that_is_no_image(page: TestClient, content: bytes, code: str, tmp_path: Path) -> None:
    answer = send(page, content)
    assert answer.status_code == 422
    assert answer.json()["code"] == code
    assert str(tmp_path) not in answer.text


def test_an_upload_that_is_too_large(page: TestClient) -> None:
    assert refusal(send(page, b"x" * (LIMIT + 1))) == (413, "upload-too-large")

    def chunks() -> Iterator[bytes]:  # tells no length beforehand
        for _ in range(3):
            yield b"\x1f\x8b" * (LIMIT // 4)

    assert refusal(page.post("/scans", content=chunks(), headers=TYPE)) == (413, "upload-too-large")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(5 * LIMIT))
    assert len(bomb.getvalue()) < LIMIT
    assert refusal(send(page, bomb.getvalue())) == (413, "upload-too-large")
    assert refusal(send(page, gzip.compress(bytes(5 * LIMIT)))) == (413, "upload-too-large")
    arrays = zipped(zipfile.ZIP_DEFLATED, **{"ct.npy": bytes(5 * LIMIT)})
    assert refusal(send(page, arrays)) == (413, "upload-too-large")


HUGE = 20_000  # voxels along an axis, of which the file holds none


def huge_nrrd(tmp_path: Path) -> bytes:
    return (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {HUGE} {HUGE} {HUGE}\nencoding: raw\nendian: little\n"
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n0"
    ).encode()


def huge_meta_image(tmp_path: Path) -> bytes:
    return (
        f"ObjectType = Image\nNDims = 3\nDimSize = {HUGE} {HUGE} {HUGE}\nElementSpacing = 1 1 1\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n0"
    ).encode()


def huge_arrays(tmp_path: Path) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (HUGE,) * 3})
    return zipped(**{"ct.npy": header.getvalue()})


def huge_dicom(tmp_path: Path) -> bytes:
    from pydicom import dcmread

    save_dicom(tmp_path / "lung", chest())
    file = min((tmp_path / "lung").iterdir())
    dataset = dcmread(file)
    dataset.Rows = dataset.Columns = HUGE
    dataset.save_as(file)
    return zipped(**series(tmp_path / "lung"))


@pytest.mark.parametrize("make", [huge_nrrd, huge_meta_image, huge_arrays, huge_dicom])
def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(
    page: TestClient, tmp_path: Path, make: Callable[[Path], bytes]
) -> None:
    content = make(tmp_path)
    assert len(content) < LIMIT
    assert refusal(send(page, content)) == (413, "upload-too-large")


def test_deflated_dicom_is_refused_unread(page: TestClient, tmp_path: Path) -> None:
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    save_dicom(tmp_path / "lung", chest())
    file = min((tmp_path / "lung").iterdir())
    dataset = dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    assert refusal(send(page, zipped(**series(tmp_path / "lung")))) == (422, "upload-compression")
    file.write_bytes(file.read_bytes()[132:])  # as old archives have it, without preamble
    assert refusal(send(page, zipped(**series(tmp_path / "lung")))) == (422, "upload-compression")


def test_a_full_disk_is_no_fault_of_the_upload(page: TestClient) -> None:
    packed = zipped(zipfile.ZIP_DEFLATED, a=bytes(LIMIT))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (LIMIT // 2, hard)
    )  # what a file may hold: the upload, and not what is in it
    try:
        answer = send(page, packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal(answer) == (507, "disk")


@pytest.mark.parametrize(
    "header",
    [
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 40 38 10\nencoding: raw\nendian: little\n"
        "space: left-posterior-superior\nspace directions: (5,0,0) (0,5,0) (0,0,6)\nspace origin: (0,0,0)\ndata file: {}\n",
        "ObjectType = Image\nNDims = 3\nDimSize = 40 38 10\nElementSpacing = 5 5 6\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "ElementType = MET_SHORT\nElementDataFile = {}\n",
    ],
)
def test_a_header_leads_to_no_other_file(page: TestClient, tmp_path: Path, header: str) -> None:
    voxels = tmp_path / "another-patient.raw"
    voxels.write_bytes(chest()[:40, :38, :10].astype("<i2").tobytes(order="F"))
    assert refusal(send(page, header.format(voxels).encode())) == (422, "upload-detached")


def test_a_meta_image_may_begin_with_its_dimensions(page: TestClient, tmp_path: Path) -> None:
    import SimpleITK as sitk

    file = tmp_path / "scan.mha"
    image = sitk.GetImageFromArray(chest().transpose(2, 1, 0))
    image.SetSpacing((5.0, 5.0, 6.0))
    sitk.WriteImage(image, str(file))
    content = file.read_bytes().removeprefix(b"ObjectType = Image\n")
    assert content.startswith(b"NDims")
    opened(page, content)


def test_scans_of_one_slice_and_without_air(page: TestClient, tmp_path: Path) -> None:
    flat = save_noise(tmp_path / "flat.nii.gz", (40, 38, 1))
    answer = send(page, flat.read_bytes())
    assert refusal(answer) == (422, "volume-too-small")
    assert "/" not in answer.json()["detail"]
    airless = opened(page, save_noise(tmp_path / "airless.nii.gz", low=0).read_bytes())
    assert any("Air" in caution for caution in airless["cautions"])
    assert len(page.post(f"/scans/{airless['id']}/scores", json={}).json()) == len(PROMPTS)


def test_a_size_that_no_chest_has_is_taken_only_where_it_is_trusted(
    page: TestClient, checkpoint: Path, tmp_path: Path
) -> None:
    small = save_noise(tmp_path / "small.nii.gz", (20, 20, 20)).read_bytes()
    assert refusal(send(page, small)) == (422, "size-implausible")
    trusting = make_app(Desk(Scorer(checkpoint), ScanOptions(trust_geometry=True)), LIMIT, ["127.0.0.1"])
    with TestClient(trusting, base_url="http://127.0.0.1") as client:
        assert any("100×100" in caution for caution in opened(client, small)["cautions"])


def test_few_scans_are_held_and_each_can_be_closed(page: TestClient, scan: Path) -> None:
    keys = [opened(page, scan.read_bytes())["id"] for _ in range(desks.MOST_OPEN + 1)]
    assert refusal(page.post(f"/scans/{keys[0]}/scores", json={})) == (404, "scan-gone")
    assert page.get(f"/scans/{keys[1]}/slices/0.png").status_code == 200
    page.delete(f"/scans/{keys[1]}")
    assert refusal(page.get(f"/scans/{keys[1]}/slices/0.png")) == (404, "scan-gone")
    assert refusal(page.get(f"/scans/{keys[2]}/maps/none/0.png")) == (404, "scan-gone")


def test_other_sites_and_names_are_not_answered(page: TestClient, scan: Path) -> None:
    assert page.get("/", headers={"Host": "evil.example"}).status_code == 400
    # What another site's form could send without being asked.
    plain = page.post("/scans", content=scan.read_bytes(), headers={"Content-Type": "text/plain"})
    assert refusal(plain) == (415, "upload-type")
    answer = page.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert page.get("/docs").status_code == 404  # it would fetch its scripts from elsewhere


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_only_a_page_that_others_reach_is_cautioned_about(
    host: str, is_open: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **settings: made.append(app))
    monkeypatch.setattr("brgsa_platform.serving.page.serve.check_free", lambda host, port: None)
    serve(checkpoint, host)
    said = capsys.readouterr().out
    address = f"http://[{host}]:8000" if ":" in host else f"http://{host}:8000"
    assert address in said
    assert ("Caution" in said) == is_open
    with TestClient(made[0], base_url=address) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == (200 if is_open else 400)


def test_the_page_is_one_file_that_names_no_other_host() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
