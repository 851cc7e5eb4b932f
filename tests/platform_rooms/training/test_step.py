"""A step in micro batches, on one worker or several: the loss and the gradients of one process on the whole batch."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import free_port, run_ranks
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from brgsa.losses import Supervision, brgsa_loss
from brgsa.model import Embeddings
from brgsa.text import train_tokenizer
from brgsa.volumes.intensity import Intensity
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.input_buffer import InputBuffer
from brgsa_platform.training.encoding import select_rows
from brgsa_platform.training.parallel.sharding import gathered, whole
from brgsa_platform.training.parallel.workers import ALONE, WorkerContext
from brgsa_platform.training.run_folder import TOKENIZER
from brgsa_platform.training.state import TrainingState
from brgsa_platform.training.step import MEASURED, StepInput, TrainingStep, UnreadLosses, seed_step

CPU = torch.device("cpu")
BATCH, WORLD = 8, 4
LR = "optim.lr=5e-4"
LOCKED = ["optim={lock: [text, 'vision:1'], lr: 5e-4, rates: {bank: 0.5}}", "train.micro_batch=2", "train.seed=0"]
PROMPTS = ["There is a nodule.", "There is a mass."]
LABELS = torch.tensor([[1.0, 0.0], [float("nan"), 1.0], [0.0, 0.0]]).repeat(3, 1)[:BATCH]
TEXTS = ["There is fluid.", "A mass is seen. There is fluid.", "No nodule.", "There is a nodule and a mass."] * 2
# Everything that draws random numbers in a step is on: noise, patches that are left out, BERT's dropout.
SETTINGS = [
    "model.vision={volume: [16, 16, 8], patch: [4, 4, 4], patch_dropout: 0.5}",
    "data={scale: 0.1, shift: 20, noise: 30}",
    "optim.clip=1e9",
    f"train={{batch_size: {BATCH}, threads: 1, workers: 0}}",
]
LOSSES = {
    "info_nce": "loss.same_text=ignore",
    "sigmoid": "loss={contrast: sigmoid, bias: -2, learn_temperature: true, learn_bias: true, same_text: positives, "
    "supervised: 0.5}",
}
WAYS = {
    "whole": [],
    "micro": ["train.micro_batch=1"],
    "micro and checkpointing": ["train={micro_batch: 2, checkpoint_activations: true}"],
}

FSDP = {
    "fsdp": ["train={parallel: fsdp, workers: 2}"],
    "fsdp, micro and checkpointing": [
        "train={parallel: fsdp, workers: 2, micro_batch: 2, checkpoint_activations: true}"
    ],
}


pytestmark = pytest.mark.usefixtures("one_thread")


def config(*more: str, loss: str = "info_nce") -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, LOSSES[loss], *more])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer(TEXTS, 100).save_pretrained(str(folder / TOKENIZER))
    return folder


def new_state(settings: RunConfig, run_folder: Path) -> TrainingState:
    torch.manual_seed(0)
    return TrainingState.new(settings, run_folder, 100, CPU)


def part_of(state: TrainingState, rank: int, world: int) -> StepInput:
    """A worker's part of the batch."""
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    hu = np.random.default_rng(0).integers(-1000, 1000, (BATCH, 16, 16, 8)).astype(np.int16)
    scans, codes = torch.arange(BATCH) // 2, torch.arange(BATCH) % 4
    volumes, learns = [torch.from_numpy(hu[mine])], state.model.scale is not None
    tokens = state.model.text.tokenize(TEXTS[mine] + (PROMPTS if learns else []))
    return StepInput(volumes, tokens, scans[mine], codes[mine], LABELS[mine] if learns else None)


def in_one_process(world: int, run_folder: Path, loss: str = "info_nce") -> tuple[Tensor, Tensor]:
    """Losses and gradients of the whole batch at once, each part drawing what its worker draws.

    Each worker drops other units of the prompts: the loss is the mean over theirs.
    """
    settings = config(loss=loss)
    state = new_state(settings, run_folder)
    state.model.train()
    parts = [part_of(state, rank, world) for rank in range(world)]
    embedded = []
    for rank, part in enumerate(parts):
        seed_step(settings.train.seed, 7, rank)
        intensity = Intensity.draw(len(part.scans), CPU, scale=0.1, shift=20, noise=30)
        embedded.append(state.model(InputBuffer(CPU).fill(part.volumes, intensity), part.tokens))
    volumes = Embeddings.concatenate([seen for seen, _ in embedded])
    texts = Embeddings.concatenate([select_rows(read, slice(BATCH // world)) for _, read in embedded])
    scans, codes = (torch.cat([getattr(part, name) for part in parts]) for name in ("scans", "codes"))
    each = []
    for _, read in embedded:
        supervision = None
        if settings.loss.supervised:
            supervision = Supervision(select_rows(read, slice(BATCH // world, None)), LABELS)
        losses = brgsa_loss(
            volumes, texts, scans, settings.loss, codes, learned=state.model.scale, supervision=supervision
        )
        each.append(torch.stack(losses))
    mean = torch.stack(each).mean(0)
    mean[0].backward()
    return mean.detach(), gradients(state)


def gradients(state: TrainingState) -> Tensor:
    found = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    return torch.cat([whole(gradient).flatten() for gradient in found])


def stepped(
    way: str, run_folder: Path, workers: WorkerContext = ALONE, loss: str = "info_nce"
) -> tuple[Tensor, Tensor]:
    """Losses and gradients as a step leaves them."""
    settings = config(*(WAYS | FSDP)[way], loss=loss)
    state = new_state(settings, run_folder)
    if settings.train.parallel == "fsdp":
        state.shard(settings.optim, 100)
    measured = TrainingStep(settings, state, workers)(part_of(state, workers.rank, workers.world), 7)
    assert state.model.training
    return workers.mean(measured)[:5], gradients(state)


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert (found[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()


def trained(
    parallel: str, run_folder: Path, workers: WorkerContext, *more: str, loss: str = "info_nce"
) -> TrainingState:
    """The state after two steps, of which the second goes on from a checkpoint of the first."""
    settings = config(f"train={{parallel: {parallel}, workers: {workers.world}}}", *more, loss=loss)
    for step in range(2):
        state = new_state(settings, run_folder)
        folder = run_folder / f"{parallel}-{workers.world}-{len(more)}-{loss}" / f"epoch-0000-step-{step:08d}"
        if step:
            state.load(folder.with_name("epoch-0000-step-00000000"))
        if parallel == "fsdp":
            state.shard(settings.optim, 100)
        TrainingStep(settings, state, workers)(part_of(state, workers.rank, workers.world), step)
        state.schedule.after_step()
        state.progress.end_step({"loss": 1.0}, 0.1)
        whole = state.whole()
        if workers.rank == 0:
            state.save(folder, {}, whole)
        workers.together(lambda: None)  # all of them read what rank 0 has written
    return state


def shared_out(run_folder: Path, workers: WorkerContext) -> dict[str, Any]:
    """What FSDP makes of the weights, and whether a worker holds a part of them and encodes alone where they are gathered."""
    for parallel in ("ddp", "fsdp"):
        trained(parallel, run_folder, workers, LR, loss="sigmoid")
        state = trained(parallel, run_folder, workers, LR)
    for parallel in ("ddp", "fsdp"):
        trained(parallel, run_folder, workers, *LOCKED)
    trained("ddp", run_folder, workers, *LOCKED[::2], "train.precision=32", "data.noise=30")  # no micro batches
    state = trained("fsdp", run_folder, workers, LR, "train.micro_batch=2")
    held = sum(weight.to_local().numel() for weight in state.model.parameters() if isinstance(weight, DTensor))
    with gathered(state.model):
        if workers.rank == 0:  # the other worker has no such batch
            state.model.eval().encode_volumes(torch.zeros(1, 1, 16, 16, 8))
        encoded = state.model.eval().encode_texts(["There is fluid."]).plain
    TrainingStep(config("train={parallel: fsdp, workers: 2}"), state, workers)(part_of(state, workers.rank, 2), 2)
    return {"held": held, "all": sum(weight.numel() for weight in state.model.parameters()), "encoded": encoded}


def worker(rank: int, ports: dict[int, int], run_folder: Path, results: Path) -> None:
    torch.set_num_threads(1)
    found: dict[tuple[int, str], Any] = {}
    for world, port in ports.items():
        if rank < world:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            dist.init_process_group("gloo", rank=rank, world_size=world)
            for way in [*WAYS, *(FSDP if world == 2 else [])]:
                found[world, way] = stepped(way, run_folder, WorkerContext(rank, world))
            if world == 2:
                for way in ("whole", "micro", *FSDP):
                    found[world, f"{way}, sigmoid"] = stepped(way, run_folder, WorkerContext(rank, world), "sigmoid")
                found[world, "shared out"] = shared_out(run_folder, WorkerContext(rank, world))
            dist.destroy_process_group()
    (results / str(rank)).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def of_workers(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], Any]]:
    """By rank: what each of 2 and of 4 gloo workers found, by (world, way)."""
    results = tmp_path_factory.mktemp("results")
    run_ranks(worker, {world: free_port() for world in (2, WORLD)}, run_folder, results, world=WORLD)
    return [pickle.loads((results / str(rank)).read_bytes()) for rank in range(WORLD)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", WAYS)
def test_one_worker_is_the_whole_batch(way: str, loss: str, run_folder: Path) -> None:
    assert_equal(stepped(way, run_folder, loss=loss), in_one_process(1, run_folder, loss))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "way"), [*((world, way) for world in (2, WORLD) for way in WAYS), *((2, way) for way in FSDP)]
)
def test_workers_together_are_one_process(
    of_workers: list[dict[tuple[int, str], Any]], world: int, way: str, run_folder: Path
) -> None:
    expected = in_one_process(world, run_folder)
    for of_rank in of_workers[:world]:
        assert_equal(of_rank[world, way], expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "micro", *FSDP])
def test_workers_learn_temperature_and_labels_as_one_process(
    of_workers: list[dict[tuple[int, str], Any]], way: str, run_folder: Path
) -> None:
    expected = in_one_process(2, run_folder, "sigmoid")
    assert expected[0][4] > 0
    for of_rank in of_workers[:2]:
        assert_equal(of_rank[2, f"{way}, sigmoid"], expected)


@pytest.mark.slow
def test_fsdp_learns_the_temperature_of_ddp(of_workers: list[dict[tuple[int, str], Any]], run_folder: Path) -> None:
    """After two steps with a checkpoint between them."""
    last = "epoch-0000-step-00000001"
    of_ddp, of_fsdp = (
        load_file(run_folder / f"{parallel}-2-1-sigmoid" / last / "model.safetensors") for parallel in ("ddp", "fsdp")
    )
    for name, begun in (("scale.log_temperature", np.log(0.1)), ("scale.bias", -2.0)):
        assert of_fsdp[name].item() == pytest.approx(of_ddp[name].item(), abs=1e-6)
        assert abs(of_ddp[name].item() - begun) > 5e-4  # two steps of some 5e-4


@pytest.mark.slow
def test_fsdp_makes_the_weights_of_ddp(of_workers: list[dict[tuple[int, str], Any]], run_folder: Path) -> None:
    """After two steps with a checkpoint between them, in checkpoints of one format; in micro batches, too."""
    last = "epoch-0000-step-00000001"
    expected = load_file(run_folder / "ddp-2-1-info_nce" / last / "model.safetensors")
    for other in ("fsdp-2-1-info_nce", "fsdp-2-2-info_nce"):
        found = load_file(run_folder / other / last / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            moved = slice(None)
            if name.endswith("qkv.bias"):
                moved = torch.arange(len(weight)) // (len(weight) // 3) != 1
            if not name.endswith(
                "key.bias"
            ):  # attention does not depend on a key's bias: Adam follows its rounding errors
                torch.testing.assert_close(found[name][moved], weight[moved], atol=1e-5, rtol=1e-5)
    # A run of one worker goes on from it.
    state = new_state(config(LR), run_folder)
    untrained = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    state.load(run_folder / "fsdp-2-1-info_nce" / last)
    assert state.progress.step == 2
    assert any((untrained[name] - weight).abs().max() > 5e-4 for name, weight in expected.items())
    assert {value["exp_avg"].shape for value in state.optimizer.state.values()} == {
        w.shape for w in state.model.parameters() if w.requires_grad
    }


@pytest.mark.slow
@pytest.mark.parametrize("other", ["fsdp-2-3-info_nce", "ddp-2-4-info_nce"])
def test_locked_weights_stay_and_the_others_learn_alike(
    of_workers: list[dict[tuple[int, str], Any]], run_folder: Path, other: str
) -> None:
    """With DDP and FSDP, in micro batches and without, over a checkpoint."""
    last = "epoch-0000-step-00000001"
    begun = new_state(config(*LOCKED), run_folder).model
    learns = {name for name, weight in begun.named_parameters() if weight.requires_grad}
    expected = load_file(run_folder / "ddp-2-3-info_nce" / last / "model.safetensors")
    found = load_file(run_folder / other / last / "model.safetensors")
    assert any(name.startswith("vision.blocks.1") for name in learns)
    for name, before in begun.state_dict().items():
        assert torch.equal(found[name], before) == (name not in learns), name
        if not name.endswith("qkv.bias"):  # of which a third is a key's
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_a_locked_tower_computes_the_same_in_training_as_in_evaluation(run_folder: Path) -> None:
    """Its dropout is off, and batch norm's statistics stay."""
    settings = config(
        "model.vision={name: cnn3d, norm: batch, width: 4, patch_dropout: 0}", "optim.lock=[vision, text]"
    )
    state = new_state(settings, run_folder)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    TrainingStep(settings, state, ALONE)(part_of(state, 0, 1), 7)
    assert state.model.training
    for name, value in state.model.state_dict().items():
        if name.startswith(("vision.", "text.")):
            assert torch.equal(value, before[name]), name
    once, again = (state.model.text(part_of(state, 0, 1).tokens) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.slow
def test_fsdp_shares_out_and_gathers(of_workers: list[dict[tuple[int, str], Any]]) -> None:
    first, second = (of_rank[2, "shared out"] for of_rank in of_workers[:2])
    assert first["held"] + second["held"] == first["all"]
    assert 0.4 < first["held"] / first["all"] < 0.6
    torch.testing.assert_close(first["encoded"], second["encoded"], atol=0, rtol=0)


def test_a_step_beyond_the_bounds_ends_at_them(run_folder: Path) -> None:
    settings = config("optim.lr=1000", loss="sigmoid")
    state = new_state(settings, run_folder)
    TrainingStep(settings, state, ALONE)(part_of(state, 0, 1), 7)
    assert state.model.scale is not None
    found, loss = state.model.scale.learned(), settings.loss
    for name, bounds in (("temperature", loss.temperature_bounds), ("bias", loss.bias_bounds)):
        assert min(abs(found[name] - bound) for bound in bounds) < 1e-6


def test_what_is_drawn_matters(run_folder: Path) -> None:
    """Another step draws other noise and drops other units, so that the tests above compare what is drawn, too."""
    _, once = stepped("whole", run_folder)
    state = new_state(config(), run_folder)
    TrainingStep(config(), state, ALONE)(part_of(state, 0, 1), 8)
    assert (gradients(state) - once).norm() > 0.01 * once.norm()


def test_the_gradients_are_clipped_and_measured_before(run_folder: Path) -> None:
    settings = config("optim.clip=0.01")
    state = new_state(settings, run_folder)
    measured = TrainingStep(settings, state, ALONE)(part_of(state, 0, 1), 7)
    norm = dict(zip(MEASURED, measured.tolist(), strict=True))["gradient_norm"]
    assert norm == pytest.approx(float(stepped("whole", run_folder)[1].norm()), rel=1e-4)
    assert float(gradients(state).norm()) == pytest.approx(0.01, rel=1e-3)


def test_losses_are_read_in_the_order_of_the_steps() -> None:
    unread = UnreadLosses(ALONE)
    for step in range(3):
        unread.add(np.array([step]), torch.tensor([step, 1.0, 2.0, 3.0, 4.0, float("inf") if step == 2 else 9.0]))
    steps = unread.read()
    assert [step.rows.tolist() for step in steps] == [[0], [1], [2]]
    assert steps[1].losses == {"loss": 1.0, "plain": 1.0, "bridged": 2.0, "reconstruction": 3.0, "supervised": 4.0}
    assert [step.is_finite(scaled=False) for step in steps] == [True, True, False]
    assert steps[2].is_finite(scaled=True)  # the scaler left that step out
    assert all(step.seconds > 0 for step in steps)
