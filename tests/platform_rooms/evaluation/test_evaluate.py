"""A checkpoint and a store in, tables and an MLflow run out; a tiny model on tiny scans, everything else real."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from refusals import refused

from brgsa import checkpoint, metrics, zeroshot
from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.metrics import gap
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer
from brgsa.vision import vision_tower
from brgsa.volumes import Geometry, read_volume, standardize
from brgsa_platform.evaluation.calibration import probabilities
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.serving.predict import predict
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection
from brgsa_platform.tracking.client import Run

pytestmark = pytest.mark.ray

LABELS = ["Cardiomegaly", "Lung nodule", "Pleural effusion", "Pneumothorax"]
GEOMETRY = Geometry(spacing=(4.0, 4.0, 8.0), shape=(20, 20, 10))
CROP = (16, 16, 8)
SPLITS = ["train"] * 6 + ["validation"] * 6 + ["test"] * 8
REPORT = "The patient has a secret sentence number {}."


@dataclass(frozen=True)
class Archive:
    """A prepared store and what went into it."""

    store: Path
    scans: dict[str, Path]
    labels: dict[str, list[float]]
    checkpoint: Path


@pytest.fixture(scope="module")
def archive(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(0)
    rows, scans = [], {}
    for scan, split in enumerate(SPLITS):
        # Cardiomegaly in each second scan, no pneumothorax anywhere but in validation, nodules rare in training.
        present = [scan % 2, int(split != "train" and scan % 3 == 0), (scan // 2) % 2, int(scan == 7)]
        for reconstruction in range(1 + (scan % 4 == 0)):
            volume_id = f"s{scan}_{reconstruction}"
            hu = rng.integers(-1000, 600, (24, 22, 12)).astype(np.int16)
            path = folder / f"{volume_id}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(hu, np.diag([-8.0, -8.0, 9.0, 1.0])), path)
            scans[volume_id] = path
            report = REPORT.format(scan)
            rows.append([path.name, report, f"s{scan}", f"p{scan}", split, *present])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["volume", "report", "scan_id", "patient_id", "split", *LABELS], *rows])
    prepare(folder / "manifest.csv", "manifest", folder / "store", PrepareOptions(GEOMETRY))
    index = Store.open(folder / "store").index(["volume_id", "scan_id", "labels"]).to_pylist()
    labels = {row["volume_id"]: [row["labels"][name] for name in LABELS] for row in index}
    return Archive(folder / "store", scans, labels, save_model(folder / "run" / "epoch-0001"))


@pytest.fixture
def pictures() -> None:
    """For a test that looks at pictures in MLflow."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made for all, and drawn where a test looks at them: drawing them all took half of this file's time."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Run, "log_figure", lambda *arguments: None)


VISION = VisionConfig(volume=CROP, evaluation="centre", patch=(4, 4, 2), width=16, depth=1, heads=2, mlp=32)


def save_model(
    folder: Path,
    bank: bool = True,
    geometry: Geometry = GEOMETRY,
    style: str = "report",
    vision: VisionConfig = VISION,
    phantom: bool = False,
) -> Path:
    config = ModelConfig(
        vision=vision,
        text=TextConfig(max_tokens=16, layers_summed=1, width=16, depth=1, heads=2, vocabulary=200),
        bank=BankConfig(enabled=bank, size=8),
        embedding=12,
    )
    torch.manual_seed(0)
    texts = [*zeroshot.prompts(LABELS), *(REPORT.format(i) for i in range(len(SPLITS)))]
    data = {"geometry": geometry.to_dict(), "style": style, "phantom": phantom}
    run = {"data": data, "labels": LABELS}
    return checkpoint.save(folder, BrgSA(config, tokenizer=train_tokenizer(texts * 2, 200)), run)


def read_scores(result_file: str) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(result_file)
    return table["volume_id"].to_pylist(), np.stack([table[name].to_numpy() for name in LABELS], axis=1)


def as_seen(archive: Archive, volume_ids: list[str]) -> torch.Tensor:
    """The volumes as the model must see them, from the files themselves."""
    arrays = [standardize(read_volume(archive.scans[volume]), GEOMETRY)[2:18, 2:18, 1:9] for volume in volume_ids]
    return torch.from_numpy(np.stack(arrays)[:, None].astype(np.float32) / 1000)


def test_whole_volumes_are_scored_standardised(archive: Archive, tmp_path: Path) -> None:
    """All of each volume, standardised, as by a tower that does neither and is given both."""
    saved = save_model(tmp_path / "run", vision=replace(VISION, evaluation="whole"))
    result = evaluate(saved, archive.store, options=EvaluateOptions(resamples=5, protocol="brgsa-paper"), out=tmp_path)
    volume_ids, scores = read_scores(result.files["scores"])
    whole = [standardize(read_volume(archive.scans[volume]), GEOMETRY) for volume in volume_ids]
    volumes = torch.from_numpy((np.stack(whole)[:, None] / 1000 - 0.4978) / 0.2449).float()
    model = checkpoint.load(saved).model
    tower = vision_tower(replace(VISION, mean=0.0, std=1.0)).eval()
    tower.load_state_dict(model.vision.state_dict())
    model.vision = tower
    expected = zeroshot.scores(model.encode_volumes(volumes), model.encode_texts(zeroshot.prompts(LABELS)))
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    assert volumes.shape[2:] == (20, 20, 10)


def test_the_table_is_the_model_s_scores_against_the_labels(archive: Archive, tmp_path: Path) -> None:
    result = evaluate(
        archive.checkpoint, archive.store, options=EvaluateOptions(resamples=50, batch_size=3), out=tmp_path
    )
    volume_ids, scores = read_scores(result.files["scores"])
    index = Store.open(archive.store).index(["volume_id", "split"]).to_pylist()
    assert sorted(volume_ids) == sorted(row["volume_id"] for row in index if row["split"] == "test")

    model = checkpoint.load(archive.checkpoint).model
    volumes = model.encode_volumes(as_seen(archive, volume_ids))
    expected = zeroshot.scores(volumes, model.encode_texts(zeroshot.prompts(LABELS)))
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)

    truth = np.array([archive.labels[volume] for volume in volume_ids])
    for i in range(3):
        assert result.abnormalities[i].figures["auroc"].value == metrics.auroc(truth[:, i], scores[:, i])
    assert not result.abnormalities[3].measured
    assert [row.rare for row in result.abnormalities] == [False, True, False, True]
    assert result.about["scans"] == 8
    assert result.about["volumes"] == 10
    assert result.about["cluster"] == "scan"


@pytest.mark.usefixtures("pictures")
def test_files_and_mlflow_tell_the_same_and_no_report(archive: Archive, tmp_path: Path) -> None:
    result = evaluate(
        archive.checkpoint, archive.store, options=EvaluateOptions(resamples=50), out=tmp_path / "new" / "folder"
    )
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "alignment-test.parquet",
        "calibration.json",
        "evaluation-test.csv",
        "evaluation-test.json",
        "labels-test.parquet",
        "scores-test.parquet",
    ]
    tree = json.loads(Path(result.files["json"]).read_text(encoding="utf-8"))
    api = connection.client()
    run = api.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["brgsa.verb"] == "evaluate"
    assert run.data.tags["brgsa.data"] == Store.open(archive.store).fingerprint
    assert run.data.metrics["auroc/macro"] == pytest.approx(tree["macro"]["auroc"]["value"])
    assert run.data.metrics["gap/before"] == pytest.approx(tree["modality_gap"]["before"])
    artifacts = {entry.path for entry in api.list_artifacts(result.run_id)}
    assert {
        "evaluation.json",
        "roc.png",
        "auroc.png",
        "reliability.png",
        "embeddings.png",
        "slices.png",
        "summary.png",
    } <= artifacts
    for path in artifacts:
        content = Path(api.download_artifacts(result.run_id, path, str(tmp_path))).read_bytes()
        assert b"secret sentence" not in content
    assert "secret sentence" not in json.dumps([run.data.params, run.data.tags])


def test_thresholds_are_chosen_on_validation_or_on_test_as_asked(archive: Archive, tmp_path: Path) -> None:
    thresholds = {}
    for protocol in ("honest", "brgsa-paper"):
        options = EvaluateOptions(protocol=protocol, resamples=20)
        result = evaluate(archive.checkpoint, archive.store, options=options, out=tmp_path / protocol)
        thresholds[protocol] = [row.threshold for row in result.abnormalities]
        assert {"honest": "validation", "brgsa-paper": "under test"}[protocol] in result.about["threshold_source"]
        assert result.about["cluster"] == {"honest": "scan", "brgsa-paper": "volume"}[protocol]
    for protocol, split in (("honest", "validation"), ("brgsa-paper", "test")):
        options = EvaluateOptions(protocol="brgsa-paper", resamples=5)
        here = evaluate(archive.checkpoint, archive.store, split, options, out=tmp_path / "x")
        volume_ids, scores = read_scores(here.files["scores"])
        truth = np.array([archive.labels[volume] for volume in volume_ids])
        expected = [metrics.corner_threshold(truth[:, i], scores[:, i]) for i in range(4)]
        np.testing.assert_allclose(thresholds[protocol], expected)


def test_gap_is_measured_on_the_texts_of_the_training_style(archive: Archive, tmp_path: Path) -> None:
    few = EvaluateOptions(resamples=5)
    result = evaluate(archive.checkpoint, archive.store, options=few, out=tmp_path)
    volume_ids, _ = read_scores(result.files["scores"])
    written = Store.open(archive.store).texts("report")
    model = checkpoint.load(archive.checkpoint).model
    volumes = model.encode_volumes(as_seen(archive, volume_ids))
    texts = model.encode_texts([written[volume] for volume in volume_ids])
    assert result.gap is not None
    assert result.gap.before == pytest.approx(gap.modality_gap(volumes.plain, texts.plain), abs=1e-5)
    assert result.gap.after == pytest.approx(gap.modality_gap(volumes.bridged, texts.bridged), abs=1e-5)
    assert result.gap.clouds_before.volumes.shape == (len(volume_ids), 2)
    bare = save_model(tmp_path / "bare", bank=False)
    assert evaluate(bare, archive.store, options=few).gap.after is None  # type: ignore[union-attr]
    assert not [note for note in result.notes if "synthetic" in note]
    unsaid = save_model(tmp_path / "unsaid", style="positives", phantom=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brgsa_platform.store.doubts.WARN_FROM", -1.0)
        patch.setattr("brgsa_platform.store.doubts.QUALITY_FLAGS", {"geometry:header": "for once a doubt"})
        other = evaluate(unsaid, archive.store, options=few)
    assert other.gap is None
    for words in ("brgsa summarize --style positives", "trained on synthetic CT", "geometry:header 100%"):
        assert any(words in note for note in other.notes), other.notes


def test_chosen_labels_contrast_and_rare_names(archive: Archive, tmp_path: Path) -> None:
    chosen = ["Lung nodule", "Cardiomegaly"]
    options = EvaluateOptions(
        labels=chosen,
        rare=["Cardiomegaly"],
        protocol="ct-clip",
        resamples=5,
    )
    result = evaluate(archive.checkpoint, archive.store, options=options, out=tmp_path)
    assert [(row.name, row.rare) for row in result.abnormalities] == [("Lung nodule", False), ("Cardiomegaly", True)]
    table = pq.read_table(result.files["scores"])
    assert table.column_names == ["volume_id", *chosen]
    assert all(0 < score < 1 for name in chosen for score in table[name].to_pylist())


def test_the_same_call_gives_the_same_table(archive: Archive, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        options = EvaluateOptions(resamples=30, batch_size=4)
        result = evaluate(archive.checkpoint, archive.store, options=options, out=tmp_path / name)
        texts.append(Path(result.files["csv"]).read_text(encoding="utf-8"))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"pairing": "t.v"}, "unknown-pairing", "pairing"),
        ({"protocol": "honesty"}, "unknown-protocol", "protocol"),
        ({"labels": ["Cardiomegali"]}, "unknown-label", "labels"),
        ({"rare": ["Gout"]}, "unknown-label", "rare"),
        ({"resamples": 0}, "below-one", "resamples"),
        ({"batch_size": 0}, "below-one", "batch_size"),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    archive: Archive, options: dict[str, Any], code: str, field: str
) -> None:
    before = set(archive.checkpoint.iterdir())
    (value,) = options.values()
    with refused(code, field=field, value=value[0] if isinstance(value, list) else value):
        evaluate(archive.checkpoint, archive.store, options=EvaluateOptions(**options))
    assert set(archive.checkpoint.iterdir()) == before


def test_a_split_that_the_store_lacks_is_refused(archive: Archive) -> None:
    with refused("empty-split", value="holdout"):
        evaluate(archive.checkpoint, archive.store, "holdout")


def test_a_checkpoint_of_another_geometry_is_refused(archive: Archive, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", geometry=Geometry(spacing=(3.0, 3.0, 6.0), shape=(20, 20, 10)))
    with refused("geometry-differs", value=str(other)):
        evaluate(other, archive.store)


def test_a_pairing_through_a_bank_that_is_not_there_is_refused(archive: Archive, tmp_path: Path) -> None:
    bare = save_model(tmp_path / "bare", bank=False)
    with refused("pairing-needs-bank", value="v'.t"):
        evaluate(bare, archive.store, options=EvaluateOptions(pairing="v'.t"))


def test_a_checkpoint_without_its_vocabulary_is_refused(archive: Archive, tmp_path: Path) -> None:
    lacking = save_model(tmp_path / "lacking")
    (lacking / "text" / "tokenizer.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with refused("checkpoint-damaged"):
        evaluate(lacking, archive.store, out=tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_protocols_of_scans_and_smallest_voxels_on_a_store(archive: Archive, tmp_path: Path) -> None:
    few = {name: evaluate(archive.checkpoint, archive.store, options=EvaluateOptions(name, resamples=5), out=tmp_path / name)
           for name in ("scan", "radfinder-mean7")}  # fmt: skip
    for name, result in few.items():
        assert (result.about["volumes"], result.about["observations"], result.about["protocol"]) == (10, 8, name)
        assert pq.read_table(result.files["scores"]).num_rows == 10


def test_embeddings_are_kept_and_serve_every_protocol_without_the_encoder(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its thresholds are chosen on the test split; the validation volumes are kept for those that need them.
    few = EvaluateOptions("brgsa-paper", resamples=10, save_embeddings=True)
    made = evaluate(archive.checkpoint, archive.store, options=few, out=tmp_path / "kept")
    kept = pq.read_table(tmp_path / "kept" / "embeddings-test.parquet")
    assert kept.column_names == ["volume_id", "v", "v_bridged", "t", "t_bridged"]
    assert kept.num_rows == 10
    assert (tmp_path / "kept" / "embeddings-validation.parquet").is_file()

    monkeypatch.setattr(BrgSA, "encode_volumes", lambda *_: pytest.fail("a volume was encoded"))
    read = replace(few, embeddings=tmp_path / "kept", save_embeddings=False)
    again = evaluate(archive.checkpoint, archive.store, options=read, out=tmp_path / "again")
    texts = [Path(result.files["csv"]).read_text(encoding="utf-8") for result in (made, again)]
    assert texts[0] == texts[1]
    assert made.alignment is not None
    assert again.alignment is not None
    assert again.alignment.figures == pytest.approx(made.alignment.figures, nan_ok=True)
    for protocol in ("ct-clip", "honest"):
        other = evaluate(
            archive.checkpoint, archive.store, options=replace(read, protocol=protocol), out=tmp_path / protocol
        )
        assert other.about["protocol"] == protocol
    torch.manual_seed(1)
    with refused("embeddings-differ", value="weights"):
        evaluate(save_model(tmp_path / "bare", bank=False), archive.store, options=read, out=tmp_path / "no")
    with refused("unreadable-embeddings"):
        evaluate(archive.checkpoint, archive.store, options=replace(read, embeddings=tmp_path), out=tmp_path / "no")


def test_several_workers_give_the_same_and_go_on_after_a_kill(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brgsa_platform.evaluation.embeddings.PART", 4)
    few = EvaluateOptions(resamples=10, batch_size=2)
    alone = evaluate(archive.checkpoint, archive.store, options=few, out=tmp_path / "one")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brgsa_platform.evaluation.evaluate.write_files", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(archive.checkpoint, archive.store, options=few, out=tmp_path / "two")
    parts = sorted((tmp_path / "two").glob(".encoding-*/*"))
    assert len(parts) == 3 + 2  # ten and eight volumes, four a part
    parts[1].unlink()
    left = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    with monkeypatch.context() as patch:
        patch.setattr("brgsa_platform.evaluation.evaluate.remove_parts", lambda folder: None)
        together = evaluate(archive.checkpoint, archive.store, options=replace(few, workers=2), out=tmp_path / "two")
    assert {part: part.stat().st_mtime_ns for part in left} == left
    texts = [Path(result.files["csv"]).read_text(encoding="utf-8") for result in (alone, together)]
    assert texts[0] == texts[1]


def test_calibration_and_what_is_named_first_are_in_the_file(archive: Archive, tmp_path: Path) -> None:
    result = evaluate(archive.checkpoint, archive.store, options=EvaluateOptions(resamples=5), out=tmp_path)
    tree = json.loads(Path(result.files["json"]).read_text(encoding="utf-8"))
    assert tree["calibration"]["error"].keys() == {"temperature", "isotonic"}
    assert 0 <= tree["calibration"]["abnormalities"]["Cardiomegaly"]["error_isotonic"] <= 1
    assert sum(tree["calibration"]["reliability"]["temperature"]["counts"]) > 10
    assert 0 <= tree["top"]["precision_at_3"]["value"] <= 1
    assert tree["alignment"]["retrieval/report_to_volume_at_5"] >= 0.5  # eight reports, ten volumes
    assert 1 <= tree["alignment"]["collapse/volumes_rank"] <= 10


def test_the_calibration_of_validation_volumes_is_kept_and_used(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven volumes are few; whether a score rises with the label is chance in a model that knows nothing."""
    monkeypatch.setattr(probabilities, "FEWEST", 2)
    own = save_model(tmp_path / "run")
    result = evaluate(own, archive.store, options=EvaluateOptions(resamples=5))
    file = own / probabilities.FILE
    assert result.files["calibration"] == str(file)
    tree = json.loads(file.read_text())
    fitted = json.loads(Path(result.files["json"]).read_text())["calibration"]["abnormalities"]
    rising = {name: row for name, row in fitted.items() if row["temperature"] > 0}
    assert {row["abnormality"]: row["temperature"] for row in tree["prompts"].values()} == {
        name: row["temperature"] for name, row in rising.items()
    }
    assert len(tree["prompts"]) + len(tree["unfitted"]) == len(LABELS)
    for row in tree["prompts"].values():
        assert row["positives"] + row["negatives"] == 7  # the validation split's, not the ten under test
    before = file.read_bytes()
    evaluate(own, archive.store, options=EvaluateOptions(resamples=5, protocol="brgsa-paper"))
    assert file.read_bytes() == before  # that protocol fits nothing: its thresholds are of the labels under test
    scan = next(iter(archive.scans.values()))
    for ranked in predict(own, scan).rows:
        fit = tree["prompts"].get(ranked.prompt)
        known = None if fit is None else 1 / (1 + np.exp(-(ranked.score / fit["temperature"] + fit["bias"])))
        assert ranked.probability == pytest.approx(known)
        assert bool(ranked.no_probability) == (fit is None)


def test_another_checkpoint_stands_beside_it(archive: Archive, tmp_path: Path) -> None:
    rival = save_model(tmp_path / "rival", bank=False)
    options = EvaluateOptions(resamples=10, compare=rival)
    result = evaluate(archive.checkpoint, archive.store, options=options, out=tmp_path / "out")
    alone = evaluate(rival, archive.store, options=EvaluateOptions(resamples=10), out=tmp_path / "alone")
    assert result.comparison is not None
    macro = result.comparison.means["macro"]
    assert macro.first == pytest.approx(result.means["macro"]["auroc"].value)
    assert macro.second == pytest.approx(alone.means["macro"]["auroc"].value)
    with refused("no-rival", field="--compare"):
        evaluate(archive.checkpoint, archive.store, options=replace(options, compare=tmp_path / "absent"))
    by_file = replace(options, compare=Path(alone.files["scores"]))
    again = evaluate(archive.checkpoint, archive.store, options=by_file, out=tmp_path / "out").comparison
    assert again is not None
    assert again.means == result.comparison.means


def test_an_unwritable_folder_is_refused_before_encoding(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("folder-not-writable", field="--out"):
        evaluate(archive.checkpoint, archive.store, out=tmp_path / "file" / "folder")
