"""The reference's checkpoint: its scores come out of ours, what it holds beside is told, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import reference_files as reference
import torch
from refusals import refused
from torch import Tensor

from brgsa import checkpoint, zeroshot
from brgsa.labels import CT_RATE
from brgsa.text import train_tokenizer
from brgsa.volumes import Geometry
from brgsa_platform.cli.main import main
from brgsa_platform.config import load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.planning.budget import budget_of
from brgsa_platform.serving.import_checkpoint import import_reference
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scorer import ScanOptions
from brgsa_platform.training.state import TrainingState

VOLUME = (8, 8, 4)
GEOMETRY = Geometry((4.0, 4.0, 8.0), (20, 20, 10))  # of the store `pairs`; all of a volume is seen
PROMPTS = ["There is pleural effusion.", "There is cardiomegaly."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(zeroshot.prompts(CT_RATE) * 2, 300).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def state(tokenizer: Path) -> dict[str, Tensor]:
    return reference.state_dict(len(_read(tokenizer)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    return reference.save(tmp_path_factory.mktemp("theirs") / "model.ckpt", state)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, file: Path, tokenizer: Path) -> Path:
    out = tmp_path_factory.mktemp("ours") / "run"
    import_reference(file, out, str(tokenizer), geometry=GEOMETRY)
    return out


def _read(tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)


def _expected(state: dict[str, Tensor], hu: Tensor, tokenizer: Path) -> Tensor:
    plain = [text.lower().strip(".") for text in PROMPTS]
    return reference.scores(state, hu, [_read(tokenizer)(text)["input_ids"] for text in plain])


@pytest.mark.parametrize("volume", [VOLUME, (12, 8, 6)])
def test_the_scores_are_the_references(
    run: Path, state: dict[str, Tensor], tokenizer: Path, volume: tuple[int, int, int]
) -> None:
    """Also of volumes of another size, for which the position table is resized."""
    hu = torch.randint(-1500, 1500, (3, *volume), generator=torch.Generator().manual_seed(1)).float()
    model = checkpoint.load(run).model
    ours = zeroshot.scores(model.encode_volumes((hu / 1000).clamp(-1, 1)[:, None]), model.encode_texts(PROMPTS), "mean")
    theirs = _expected(state, hu, tokenizer)
    assert theirs.std() > 0.01  # scores that differ, so that equal ones say something
    assert (ours - theirs).abs().max() < 1e-5


def test_predict_works_on_the_run(run: Path, state: dict[str, Tensor], tokenizer: Path, tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 600, GEOMETRY.shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-4.0, -4.0, 8.0, 1.0])), tmp_path / "scan.nii.gz")
    small = ScanOptions(trust_geometry=True)  # smaller than a chest
    prediction = predict(run, tmp_path / "scan.nii.gz", PROMPTS, options=small)
    theirs = _expected(state, torch.from_numpy(hu).float()[None], tokenizer)[0]
    assert {row.prompt: row.score for row in prediction.rows} == pytest.approx(
        dict(zip(PROMPTS, theirs.tolist(), strict=True)), abs=1e-5
    )
    assert len(predict(run, tmp_path / "scan.nii.gz", options=small).rows) == len(CT_RATE)


def test_the_run_names_its_text_model(run: Path) -> None:
    assert checkpoint.load(run).model.config.text.name == str(run / "text")


@pytest.mark.ray
def test_evaluate_works_on_the_run(run: Path, pairs: Path, tmp_path: Path) -> None:
    result = evaluate(run, pairs, "validation", EvaluateOptions(resamples=10), out=tmp_path)
    assert result.about["checkpoint"].endswith(run.name)
    assert (tmp_path / "evaluation-validation.json").is_file()


def test_a_training_goes_on_from_the_run(run: Path, tmp_path: Path) -> None:
    """With the run's folder as text model and as weights; the text model's folder has none of its own."""
    vision = checkpoint.load(run).model.config.vision
    sizes = f"width: {vision.width}, depth: {vision.depth}, heads: {vision.heads}, mlp: {vision.mlp}"
    config = load_config(
        "paper-smoke",
        overrides=[
            f"model.vision={{volume: [16, 8, 8], patch: {list(vision.patch)}, {sizes}, weights: {run}}}",
            f"model.text={{name: {run / 'text'}, weights: {run}, layers_summed: 4}}",
            "train.workers=0",
        ],
    )
    state = TrainingState.new(config, tmp_path, 10, torch.device("cpu"))
    told = state.start_towers()
    theirs, ours = checkpoint.load(run).model.state_dict(), state.model.state_dict()
    towers = {name for name in theirs if name.startswith(("vision.", "text."))}
    assert {name for name in towers if not torch.equal(ours[name].flatten()[:64], theirs[name].flatten()[:64])} == set()
    assert ours["vision.pos_embed"].shape[1] == 1 + 4 * 2 * 4
    assert told["vision"].missing == told["text"].missing == []
    assert budget_of(config).parameters > 0  # the dry run reads the text model's size from the folder


def test_the_command_says_what_was_left_out(file: Path, tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    named = {"--format": "brgsa-reference", "--out": str(tmp_path / "run"), "--tokenizer": str(tokenizer)}
    main(["import-checkpoint", str(file), *(word for option in named.items() for word in option)])
    told = json.loads((tmp_path / "run" / "run.json").read_text())["imported"]
    assert "brgsa predict" in capsys.readouterr().out
    assert {name for name in told["unused"] if "pooler" in name}
    assert {
        "hyper_parameters",
        "epoch",
        "absentconf.dictconfig.DictConfig",
        "img_encoder.local_embedder.weight",
    } <= set(told["unused"])
    assert told["missing"] == []
    assert told["used"] == len(checkpoint.load(tmp_path / "run").model.state_dict())
    with refused("folder-not-empty", field="--out"):
        import_reference(file, tmp_path / "run", str(tokenizer))


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("img_encoder.model.blocks.1.mlp.fc1.weight", lambda t: t[:-1], "weights-mismatch"),
        ("img_encoder.model.blocks.1.norm1.bias", None, "weights-missing"),
        ("text_encoder.emb_global.weight", lambda t: t * torch.nan, "weights-not-finite"),
        ("dictionarylearning.dictionary.weight", None, "weights-of-another-architecture"),
        ("img_encoder.model.patch_embed.proj.weight", lambda t: t.flatten(1), "weights-mismatch"),
        ("img_encoder.model.pos_embed", lambda t: t[:, :-1], "unknown-grid"),
        ("text_encoder.model.embeddings.word_embeddings.weight", lambda t: t[:-3], "vocabulary-differs"),
    ],
)
def test_a_tensor_that_is_not_as_it_should_be_is_refused(
    state: dict[str, Tensor], tokenizer: Path, tmp_path: Path, name: str, change: Any, code: str
) -> None:
    changed = dict(state)
    tensor = changed.pop(f"gloria.{name}")
    if change is not None:
        changed[f"gloria.{name}"] = change(tensor)
    reference.save(tmp_path / "bad.ckpt", changed)
    with refused(code):
        import_reference(tmp_path / "bad.ckpt", tmp_path / "run", str(tokenizer))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_is_none_is_refused(file: Path, tmp_path: Path) -> None:
    with refused("no-tokenizer", field="--tokenizer", value=str(tmp_path)):
        import_reference(file, tmp_path / "run", str(tmp_path))
