"""All that a training changes, as a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brgsa import checkpoint
from brgsa.locking import lock
from brgsa.model import BrgSA
from brgsa.precision import gradient_scaler, restore_scaler
from brgsa.temperature import learned_scale
from brgsa.vision import ViT3D
from brgsa.weights.fitting import Fitted
from brgsa.weights.start import start_towers
from brgsa_platform.config import OptimSection, RunConfig
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.parallel import sharding
from brgsa_platform.training.run_folder import TOKENIZER
from brgsa_platform.training.schedule import Schedule, optimizer_of


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch, step: whole epochs, and steps of the run.
        history: one entry a whole epoch: `epoch`, `score` (larger is better) and its metrics.
        sums, seconds: losses and time, summed over the steps of the epoch that is under way.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def end_step(self, losses: dict[str, float], seconds: float) -> None:
        """Count a step with its losses."""
        self.step += 1
        self.seconds += seconds
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}

    def end_epoch(self, score: float, metrics: dict[str, float]) -> None:
        """Count an epoch with its metrics."""
        self.epoch += 1
        self.history.append({"epoch": self.epoch, "score": score, **metrics})
        self.sums, self.seconds = {}, 0.0


@dataclass
class TrainingState:
    """Model, optimiser, learning rate, gradient scaler and progress: a training that is stopped goes on from these."""

    model: BrgSA
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    progress: Progress

    @classmethod
    def new(cls, config: RunConfig, run_folder: Path, total_steps: int, device: torch.device) -> TrainingState:
        """The state before the first step, its weights drawn from torch's default generator.

        Args:
            run_folder: holds the tokenizer of the small text tower.
            total_steps: steps of the whole run.
        """
        model = _model(config, run_folder / TOKENIZER).to(device)
        lock(model, config.optim.locks)
        optimizer = optimizer_of(config.optim, model)
        return cls(
            model,
            optimizer,
            Schedule(config.optim, optimizer, total_steps),
            gradient_scaler(device, config.train.precision),
            Progress(),
        )

    def start_towers(self) -> dict[str, Fitted]:
        """Give the towers of a new model the weights that the configuration names; tells what became of each file.

        Raises:
            UserError: a file cannot be read or does not fit (see `brgsa.weights.start`), or is a run without a checkpoint.
        """
        config = self.model.config
        return start_towers(self.model, _weights(config.vision.weights), _weights(config.text.weights))

    def shard(self, config: OptimSection, total_steps: int) -> None:
        """Share weights and optimiser out among the workers, which all hold the same; all workers call it."""
        optimizer, schedule = self.optimizer.state_dict(), self.schedule.state()
        sharding.shard(self.model)
        self.optimizer = optimizer_of(config, self.model)
        self.schedule = Schedule(config, self.optimizer, total_steps)
        self.optimizer.load_state_dict(sharding.shared_out(optimizer, self.optimizer))
        self.schedule.restore(schedule)

    def whole(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All weights and the optimiser's whole state; all workers call it, for a part may lie with each of them."""
        return sharding.whole(self.model.state_dict()), sharding.whole(self.optimizer.state_dict())

    def save(
        self, folder: Path, run: dict[str, Any], whole: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            run: what its run.json says.
            whole: `whole()`, where the state is shared out among workers.
        """
        training = {**asdict(self.progress), "schedule": self.schedule.state(), "scaler": self.scaler.state_dict()}
        weights, optimizer = whole or self.whole()
        checkpoint.save(folder, self.model, run, training=training, optimizer=optimizer, weights=weights)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint, whatever kind of device wrote it.

        Raises:
            UserError: it is damaged, or of another configuration or version.
        """
        checkpoint.load_weights(self.model, folder)
        training = checkpoint.load_training(folder, self.optimizer)
        self.schedule.restore(training.pop("schedule"))
        restore_scaler(self.scaler, training.pop("scaler"))
        self.progress = Progress(**training)


def _weights(path: str | None) -> Path | None:
    """A file of weights, or a folder with one; of a run its best checkpoint."""
    if path is None:
        return None
    is_run = (Path(path) / run_checkpoints.FOLDER).is_dir()
    return run_checkpoints.resolve(path) if is_run else Path(path)


def _model(config: RunConfig, tokenizer: Path) -> BrgSA:
    from transformers import AutoTokenizer

    of_the_corpus = None
    if config.model.text.name == "small":
        of_the_corpus = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    model = BrgSA(config.model, tokenizer=of_the_corpus)
    model.scale = learned_scale(config.loss)
    if isinstance(model.vision, ViT3D):
        model.vision.checkpoint_activations = config.train.checkpoint_activations
    return model
