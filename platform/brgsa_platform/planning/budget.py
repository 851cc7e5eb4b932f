"""Memory and arithmetic of a training step on one worker, from the configuration alone.

docs/benchmarks.md has the predictions beside what a card measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, merge
from brgsa_platform.planning.costs import TowerCost, text_cost, vision_cost

GIB = 2**30
MATRIX_TFLOPS = 787.0  # an H100's measured rate in a large bfloat16 matrix product (docs/benchmarks.md)
FUSED = 0.95  # share of a transformer's kept bytes that torch.compile leaves
CONTEXT_GIB = 1.0  # CUDA's own memory, and what no tensor fills between others


@dataclass(frozen=True)
class Budget:
    """What a step takes.

    Attributes:
        precision: "32", "16" or "bf16".
        parameters: number of weights.
        step_flops: of the whole batch, forward and backward; what is computed twice counts once.
        computed_flops: the same with what is computed twice.
        memory: GiB of a worker by part; their sum is the predicted peak of its tensors.
    """

    precision: str
    parameters: int
    step_flops: float
    computed_flops: float
    memory: dict[str, float]

    @property
    def peak_gib(self) -> float:
        """The largest memory of a worker's tensors."""
        return sum(self.memory.values())

    def fits(self, card_gib: float) -> bool:
        """Whether a card of so much memory holds it, with CUDA's own."""
        return self.peak_gib + CONTEXT_GIB <= card_gib


def budget_of(config: RunConfig, *, on_gpu: bool = True) -> Budget:
    """The budget of a configuration's step; `train.precision` "auto" counts as bfloat16 on a GPU.

    Raises:
        UserError: see `costs.text_cost`; or a tower has no such blocks as `optim.lock` names ("no-such-block").
    """
    train, model = config.train, config.model
    precision = "32" if not on_gpu else "bf16" if train.precision == "auto" else train.precision
    vision, text = _towers(config, precision)
    bank = model.bank.size * model.embedding if model.bank.enabled else 0
    others = bank + (model.embedding + 1) * 2 * model.embedding  # projections, about
    parameters = vision.parameters + text.parameters + others
    flops = train.batch_size * sum(tower.flops * (1 + 2 * tower.learning) for tower in (vision, text))
    again = vision.flops * (bool(train.micro_batch) + train.checkpoint_activations * vision.learning)
    again += text.flops * bool(train.micro_batch)
    return Budget(
        precision,
        parameters,
        flops,
        flops + train.batch_size * again,
        {
            **_weights(config, parameters, vision, text),
            **_batch(config),
            **_activations(config, vision, text),
        },
    )


def _towers(config: RunConfig, precision: str) -> tuple[TowerCost, TowerCost]:
    """Costs of the vision and the text tower, as far as they learn."""
    towers = {"vision": vision_cost(config.model.vision, precision), "text": text_cost(config.model.text, precision)}
    for lock in config.optim.locks:
        blocks = towers[lock.tower].blocks
        try:
            lock.check(blocks)
        except ValueError as error:
            raise UserError(
                f"optim.lock: {error}.", code="no-such-block", field="optim.lock", value=str(lock)
            ) from error
        towers[lock.tower] = towers[lock.tower].but_for(lock.free)
    return towers["vision"], towers["text"]


def _weights(config: RunConfig, parameters: int, vision: TowerCost, text: TowerCost) -> dict[str, float]:
    """Weights and what is kept for each of them."""
    learning = 4 * (parameters - vision.locked - text.locked) / GIB
    parts = {"weights": 4 * parameters / GIB, "gradients": learning, "optimizer": 2 * learning}
    if config.train.parallel == "fsdp":
        in_blocks = vision.blocks * vision.largest_block + text.blocks * text.largest_block
        # All that is outside blocks stays gathered for a pass, of the blocks one at a time; each has a gradient of its size.
        gathered = 2 * 4 * (parameters - in_blocks + max(vision.largest_block, text.largest_block)) / GIB
        parts = {name: gib / config.train.worker_counts[0] for name, gib in parts.items()} | {
            "gathered_weights": gathered
        }
    elif config.train.worker_counts[-1] > 1 and not config.train.micro_batch:
        parts["ddp_buckets"] = learning
    return parts | {"weights_in_16_bits": (vision.kept_once + text.kept_once) / GIB}


def _batch(config: RunConfig) -> dict[str, float]:
    """Volumes as floats, as the tower's standardised input, and two batches of int16: one at work, one on its way."""
    vision, train = config.model.vision, config.train
    voxels, at_once = math.prod(vision.volume), train.micro_batch or train.local_batch
    is_new = bool(vision.windows) or (vision.mean, vision.std) != (0.0, 1.0)
    standardised = is_new * 4 * max(1, len(vision.windows)) * at_once * voxels
    return {"batch": ((4 + 2 * 2) * train.local_batch * voxels + standardised) / GIB}


def _activations(config: RunConfig, vision: TowerCost, text: TowerCost) -> dict[str, float]:
    """What both towers keep for the backward pass at the time when it is most."""
    train = config.train
    volumes = train.micro_batch or train.local_batch
    fused = FUSED if train.compile and vision.blocks else 1.0
    of_texts = train.local_batch * text.kept_bytes
    if train.checkpoint_activations:
        rest = vision.kept_bytes - vision.blocks * vision.block_bytes
        kept = volumes * (max(0.0, rest) + vision.learning * vision.blocks * vision.block_input)
        again = fused * volumes * vision.block_bytes * (vision.learning > 0)
    else:
        kept, again = fused * volumes * vision.kept_bytes, 0.0
    # In micro batches the texts' turn comes when the volumes' memory is free again. Else their backward pass comes first, and
    # then a block is computed again.
    of_texts = max(0.0, of_texts - again - (kept if train.micro_batch else 0.0))
    return {"activations": (kept + again) / GIB, "text_activations": of_texts / GIB}


def check_card(config: RunConfig, budget: Budget, card_gib: float) -> None:
    """Refuse a step that the cards cannot hold.

    Raises:
        UserError: "card-too-small"; `field` is the key that would make it fit.
    """
    if budget.fits(card_gib):
        return
    for changes in _savings(config):
        changed = _changed(config, changes)
        if changed is not None and budget_of(changed).fits(card_gib):
            field = next(iter(changes))
            mend = "set " + " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
            break
    else:
        field, mend = "model.vision", "choose a smaller tower or volume, or a smaller train.batch_size"
    raise UserError(
        f"A step needs {budget.peak_gib + CONTEXT_GIB:.1f} GiB on each worker and a card has {card_gib:.1f} GiB: {mend}.",
        code="card-too-small",
        field=field,
        value=round(budget.peak_gib, 1),
    )


def _savings(config: RunConfig) -> list[dict[str, Any]]:
    """Settings that save memory, the quickest step first."""
    train = config.train
    below = train.micro_batch or train.local_batch
    micro = [{"train.micro_batch": size} for size in range(below - 1, 0, -1) if train.local_batch % size == 0]
    checkpointed = {"train.checkpoint_activations": True}
    savings: list[dict[str, Any]] = [{"train.precision": "bf16"}] if train.precision == "32" else []
    if config.model.vision.name == "vit3d" and not train.checkpoint_activations:
        savings += [checkpointed, *micro, *(size | checkpointed for size in micro)]
    else:
        savings += micro
    return [*savings, {"train.parallel": "fsdp"}]


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig | None:
    """The configuration with other settings of `train`; None where they do not go together."""
    train = {key.removeprefix("train."): value for key, value in changes.items()}
    try:
        return RunConfig.from_tree(merge(config.to_dict(), {"train": train}))
    except UserError:
        return None
