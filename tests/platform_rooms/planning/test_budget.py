"""What a step takes, from the configuration alone, beside what an H100 measured (docs/benchmarks.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import refused

from brgsa.config import ModelConfig, TextConfig, VisionConfig
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer
from brgsa.vision import vision_tower
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.planning.budget import budget_of, check_card
from brgsa_platform.planning.costs import text_cost, vision_cost

BENCHMARK = "train.precision=bf16"
PLAIN_INPUT = "model.vision={mean: 0, std: 1}"  # as it was when the card measured
CHECKPOINTED = "train.checkpoint_activations=true"


def paper(*more: str) -> RunConfig:
    return load_config("paper", overrides=[BENCHMARK, *more])


@pytest.mark.parametrize(
    ("settings", "measured_gib"),
    [
        ([], 63.51),
        (["train.compile=true"], 60.51),
        (["train.compile=true", CHECKPOINTED], 17.16),
        (["train.compile=true", "model.vision.patch_dropout=0.5"], 35.00),
        (["train.compile=true", "train.micro_batch=16"], 18.75),
        (["train.compile=true", "train.micro_batch=8"], 12.12),
        (["train.compile=true", "train.micro_batch=8", "model.vision.patch_dropout=0.5"], 8.92),
    ],
)
def test_the_papers_step_beside_the_card(settings: list[str], measured_gib: float) -> None:
    assert budget_of(paper(PLAIN_INPUT, *settings)).peak_gib == pytest.approx(measured_gib, rel=0.15)


@pytest.mark.parametrize(("settings", "volumes", "channels"), [
    ([], 64, 1), (["train.micro_batch=8"], 8, 1), (["model.vision.windows=[[-1000, 0], [0, 400]]"], 64, 2),
])  # fmt: skip
def test_a_standardised_input_is_another_batch_of_floats(settings: list[str], volumes: int, channels: int) -> None:
    plain, standardised = (budget_of(paper(*settings, *more)).memory["batch"] for more in ([PLAIN_INPUT], []))
    if channels > 1:  # windows make it anyway
        plain = budget_of(paper(PLAIN_INPUT)).memory["batch"]
    assert (standardised - plain) * 2**30 == pytest.approx(volumes * channels * 4 * 224 * 224 * 112)


def test_the_papers_arithmetic() -> None:
    whole, micro, both = (
        budget_of(paper(*more)) for more in ([], ["train.micro_batch=8"], ["train.micro_batch=8", CHECKPOINTED])
    )
    assert whole.step_flops == pytest.approx(147.75e12, rel=0.01)  # as torch counts on the device
    assert whole.computed_flops == whole.step_flops == micro.step_flops
    assert micro.computed_flops == pytest.approx(4 / 3 * whole.step_flops)
    assert both.computed_flops == pytest.approx(5 / 3 * whole.step_flops, rel=0.02)


@pytest.mark.parametrize("config", [VisionConfig(volume=(32, 32, 16), depth=2), VisionConfig(name="resnet10", width=8)])
def test_a_towers_weights_are_counted(config: VisionConfig) -> None:
    tower = vision_tower(config)
    assert vision_cost(config, "bf16").parameters == sum(weight.numel() for weight in tower.parameters())


def test_a_texts_weights_are_counted() -> None:
    config = TextConfig(width=32, depth=2, heads=2, layers_summed=2, vocabulary=100)
    vision = VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16)
    tokenizer = train_tokenizer(["There is fluid."] * 2, 100)
    model = BrgSA(ModelConfig(vision=vision, text=config), tokenizer=tokenizer)
    counted = sum(weight.numel() for weight in model.text.parameters())
    # The vocabulary that a corpus gives is smaller than the one that is aimed at.
    assert text_cost(config, "32").parameters == counted + 32 * (100 - len(tokenizer))


def test_what_is_kept_is_what_autograd_keeps() -> None:
    """Of a real pass in float32, without the weights."""
    config = VisionConfig(volume=(32, 32, 16), patch=(16, 16, 8), width=48, depth=2, heads=4, mlp=96)
    tower = vision_tower(config).train()
    weights = {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tower(torch.zeros(3, 1, *config.volume))
    found = vision_cost(config, "32")
    assert found.kept_once + 3 * found.kept_bytes == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.01)


def test_workers_share_what_can_be_shared() -> None:
    alone = budget_of(paper()).memory
    two = budget_of(paper("train.workers=2")).memory
    shared = budget_of(paper("train.workers=2", "train.parallel=fsdp")).memory
    assert two["weights"] == alone["weights"] == two["ddp_buckets"]
    assert two["activations"] == alone["activations"] / 2
    for part in ("weights", "gradients", "optimizer"):
        assert shared[part] == two[part] / 2
    assert "ddp_buckets" not in shared
    assert "ddp_buckets" not in budget_of(paper("train.workers=2", "train.micro_batch=8")).memory


@pytest.mark.parametrize(
    ("settings", "gib", "field"),
    [
        (["train.precision=32"], 80.0, "train.precision"),
        ([], 24.0, "train.checkpoint_activations"),
        ([], 16.0, "train.micro_batch"),
        ([CHECKPOINTED], 12.0, "train.micro_batch"),
        (["train.workers=8", "model.vision.patch=[8, 8, 8]"], 6.0, "train.micro_batch"),  # beside checkpointing
        (["train.workers=64", "train.micro_batch=1", CHECKPOINTED], 4.0, "train.parallel"),
        (["train.micro_batch=1"], 2.0, "model.vision"),
    ],
)
def test_a_card_that_is_too_small(settings: list[str], gib: float, field: str) -> None:
    config = paper(*settings)
    budget = budget_of(config)
    with refused("card-too-small", field=field, value=round(budget.peak_gib, 1)) as caught:
        check_card(config, budget, gib)
    if field.startswith("train."):
        mends = str(caught.value).rpartition("set ")[2].removesuffix(".").split()
        assert mends[0].startswith(f"{field}=")
        changed = load_config("paper", overrides=[BENCHMARK, *settings, *mends])
        check_card(changed, budget_of(changed), gib)  # the key that it names makes it fit


def test_a_card_that_is_large_enough() -> None:
    for name, gib in (("ct-rate-24gb", 22.0), ("ct-rate-h100", 79.1), ("paper", 79.1)):
        config = load_config(name)
        check_card(config, budget_of(config), gib)


def test_a_text_model_that_is_not_there(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with refused("no-text-model", field="text.name", value=gone):
        text_cost(TextConfig(name=gone), "32")


def test_a_locked_tower_has_no_gradients_and_keeps_nothing() -> None:
    """The text tower of 109.5 million weights: 4 bytes each of gradients, 8 of the optimiser."""
    free, locked = budget_of(paper()), budget_of(paper("optim.lock=[text]"))
    text = text_cost(paper().model.text, "bf16")
    gib = 4 * text.parameters / 2**30
    assert locked.memory["weights"] == free.memory["weights"]
    assert free.memory["gradients"] - locked.memory["gradients"] == pytest.approx(gib)
    assert free.memory["optimizer"] - locked.memory["optimizer"] == pytest.approx(2 * gib)
    assert locked.memory["text_activations"] == 0.0
    assert free.step_flops - locked.step_flops == pytest.approx(64 * 2 * text.flops)


def test_locked_blocks_count_as_they_are() -> None:
    free, half, whole = (budget_of(paper(*more)) for more in ([], ["optim.lock=['vision:6']"], ["optim.lock=[vision]"]))
    block = vision_cost(paper().model.vision, "bf16").largest_block
    learns = half.memory["gradients"] - whole.memory["gradients"]
    assert learns == pytest.approx(6 * 4 * block / 2**30)
    assert half.memory["activations"] == pytest.approx(free.memory["activations"] / 2, rel=0.05)
    assert whole.memory["activations"] == 0.0


def test_a_lock_of_more_blocks_than_the_text_model_has() -> None:
    """bert-base-uncased, whose depth the configuration does not say."""
    with refused("no-such-block", field="optim.lock", value="text:13"):
        budget_of(paper("optim.lock=['text:13']"))
