"""What a checkpoint keeps of a training, and that it goes on from it on another kind of device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brgsa.text import train_tokenizer
from brgsa_platform.config import load_config
from brgsa_platform.training.run_folder import TOKENIZER
from brgsa_platform.training.state import Progress, TrainingState

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer(["There is fluid."] * 2, 100).save_pretrained(str(folder / TOKENIZER))
    return folder


def state(run_folder: Path, *, scaled: bool) -> TrainingState:
    """A new training, with the scaler of a GPU's float16 or without one; a scaler of the same kind works on a CPU."""
    new = TrainingState.new(load_config("paper-smoke"), run_folder, 100, CPU)
    new.scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=512.0)
    return new


def with_a_step(run_folder: Path, *, scaled: bool) -> TrainingState:
    begun = state(run_folder, scaled=scaled)
    loss = begun.model.encode_texts(["There is fluid."]).plain.sum() * 0 + sum(
        p.sum() for p in begun.model.parameters()
    )
    begun.scaler.scale(loss).backward()
    begun.scaler.step(begun.optimizer)
    begun.scaler.update(256.0 if scaled else None)
    begun.schedule.after_step()
    begun.progress.end_step({"loss": 2.0}, 0.5)
    return begun


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_goes_on_with_a_scaler_and_without(run_folder: Path, tmp_path: Path, before: bool, after: bool) -> None:
    begun = with_a_step(run_folder, scaled=before)
    begun.save(tmp_path / "epoch-0000-step-00000001", {})
    resumed = state(run_folder, scaled=after)
    resumed.load(tmp_path / "epoch-0000-step-00000001")
    # A scaler that has no predecessor begins anew; one that has goes on.
    assert resumed.scaler.get_scale() == (1.0 if not after else 256.0 if before else 512.0)
    assert resumed.progress == Progress(epoch=0, step=1, sums={"loss": 2.0}, seconds=0.5)
    for name, weight in begun.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight)
    with_moments = [value for value in resumed.optimizer.state.values() if value["exp_avg"].abs().sum() > 0]
    assert len(with_moments) == sum(weight.requires_grad for weight in resumed.model.parameters())


def test_an_epoch_begins_its_sums_anew() -> None:
    progress = Progress()
    for loss in (1.0, 3.0):
        progress.end_step({"loss": loss}, 0.5)
    assert (progress.step, progress.sums, progress.seconds) == (2, {"loss": 4.0}, 1.0)
    progress.end_epoch(0.7, {"val/auroc": 0.7})
    assert (progress.epoch, progress.step, progress.sums, progress.seconds) == (1, 2, {}, 0.0)
    assert progress.history == [{"epoch": 1, "score": 0.7, "val/auroc": 0.7}]
