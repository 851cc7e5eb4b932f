"""`brgsa train --dry-run`: what a training needs and takes, and whether the cluster's cards hold it; nothing is started."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

import numpy as np

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.items import items_of, training_steps
from brgsa_platform.loading.unseen import training_view
from brgsa_platform.planning.budget import CONTEXT_GIB, GIB, MATRIX_TFLOPS, Budget, budget_of, check_card
from brgsa_platform.runtime.console import byte_size, duration
from brgsa_platform.store.store import Store
from brgsa_platform.training.driver import check_fit

CARD = "BRGSA_CARD_GIB"
# GiB that torch sees of the cards that Ray knows by name.
KNOWN_CARDS = {
    "T4": 14.6,
    "L4": 22.0,
    "A10G": 22.0,
    "V100": 15.8,
    "A100": 39.4,
    "A100-80G": 79.2,
    "L40S": 44.4,
    "H100": 79.1,
}
SMALLEST_TOLD = 0.05 * 2**20  # bytes of a part of the memory


@dataclass(frozen=True)
class Plan:
    """What a training needs and takes.

    Attributes:
        card_gib: memory of the smallest card; None where none is seen.
        steps, epochs: of the whole run; it may stop earlier (`train.stop_after`).
        volumes, shards: of the training split.
        items: what an epoch has, of which it takes as many as fill its batches.
        mfu: share of `matrix_tflops` that model FLOPs are taken to reach; what is computed twice takes its time beside.
        hours: of the steps.
    """

    budget: Budget
    workers: int
    card_gib: float | None
    epochs: int
    steps: int
    volumes: int
    shards: int
    items: int
    mfu: float
    matrix_tflops: float
    hours: float

    def to_json(self) -> str:
        """One JSON object, with the predicted peak beside its parts."""
        return json.dumps({**asdict(self), "peak_gib": self.budget.peak_gib})

    def to_text(self) -> str:
        """Lines for a terminal."""
        budget = self.budget
        parts = ", ".join(
            f"{name.replace('_', ' ')} {byte_size(gib * GIB)}"
            for name, gib in budget.memory.items()
            if gib * GIB >= SMALLEST_TOLD
        )
        card = "no card seen" if self.card_gib is None else f"a card has {self.card_gib:.1f} GiB"
        time = duration(3600 * self.hours) if 3600 * self.hours >= 1 else "under 1 s"
        return "\n".join(
            [
                f"{budget.parameters / 1e6:.1f} million weights, {budget.step_flops / 1e12:.3g} TFLOP a step",
                f"{byte_size(budget.peak_gib * GIB)} on each of {self.workers} workers and {CONTEXT_GIB:.0f} GiB for CUDA "
                f"({card}): {parts}",
                f"{self.steps} steps in {self.epochs} epochs of {self.items} items, of {self.volumes} volumes in {self.shards} "
                "shards",
                f"{time} at MFU {self.mfu:g} of {self.matrix_tflops:.0f} TFLOP/s on each worker",
            ]
        )


def dry_run(store_path: str, config: RunConfig, mfu: float) -> Plan:
    """Plan a training.

    Raises:
        UserError: the store does not serve the configuration (`driver.check_fit`), or no card holds a step ("card-too-small").
    """
    if not 0 < mfu <= 1:
        raise UserError(
            f"--mfu must be above 0 and at most 1, not {mfu}.", code="impossible-value", field="--mfu", value=mfu
        )
    store = training_view(Store.open(store_path), config.data)
    check_fit(store, config)
    rows = split_index(store, "train", config.data.style)
    card_gib = None if config.train.gpu is False else smallest_card()
    budget = budget_of(config, on_gpu=card_gib is not None or config.train.gpu is not False)
    if card_gib is not None:
        check_card(config, budget, card_gib)
    items = items_of(store, rows, config)
    steps = config.train.epochs * training_steps(rows, items, config)
    workers = max(1, config.train.worker_counts[0])
    seconds = steps * budget.computed_flops / (workers * MATRIX_TFLOPS * 1e12 * mfu)
    return Plan(
        budget,
        workers,
        card_gib,
        config.train.epochs,
        steps,
        len(rows),
        len(np.unique(rows.shard)),
        len(items.apart),
        mfu,
        MATRIX_TFLOPS,
        seconds / 3600,
    )


def smallest_card() -> float | None:
    """GiB of the smallest card that a training may get: of BRGSA_CARD_GIB, of the cluster that RAY_ADDRESS names, or here.

    Raises:
        UserError: BRGSA_CARD_GIB is no number above 0 ("bad-variable").
    """
    given = os.environ.get(CARD)
    if given:
        try:
            gib = float(given)
        except ValueError:
            gib = 0.0
        if not gib > 0:
            raise UserError(
                f"{CARD} is {given!r}: set it to a card's memory in GiB.", code="bad-variable", field=CARD, value=given
            )
        return gib
    return _of_cluster() if os.environ.get("RAY_ADDRESS") else _of_this_machine()


def _of_cluster() -> float | None:
    import ray

    from brgsa_platform.runtime.session import ray_session

    with ray_session():
        names = [name.removeprefix("accelerator_type:") for name in ray.cluster_resources()]
    return min((KNOWN_CARDS[name] for name in names if name in KNOWN_CARDS), default=None)


def _of_this_machine() -> float | None:
    import torch

    cards = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(card).total_memory / GIB for card in cards), default=None)
