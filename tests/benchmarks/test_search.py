"""How the search's benchmark compares curves; how searches fare is not asked here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def search() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search", Path(__file__).parents[2] / "benchmarks" / "search.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_epochs_to_what_random_search_came_to_on_the_mean_over_seeds(search: ModuleType) -> None:
    ours = [np.array([0.5, 0.7, 0.9, 0.9]), np.array([0.5, 0.5, 0.7, 0.9])]  # mean 0.5, 0.6, 0.8, 0.9
    random = [np.array([0.5, 0.6, 0.7, 0.7]), np.array([0.5, 0.5, 0.5, 0.5])]  # mean 0.5, 0.55, 0.6, 0.6
    ratios, figures = search.compare({"TPE + ASHA": ours, "random": random})
    assert ratios == {"epochs_to_same_auroc_vs_random": 1.5}  # 3 epochs against 2
    assert figures["best_tpe_asha"] == [0.9, 0.9]
    assert (figures["epochs_tpe_asha"], figures["epochs_random"]) == (2, 3)


def test_a_target_that_is_never_reached_is_said_so(search: ModuleType) -> None:
    low, high = np.array([0.5, 0.5, 0.5]), np.array([0.5, 0.6, 0.8])
    ratios, figures = search.compare({"TPE + ASHA": [low], "random": [high]})
    assert ratios == {"epochs_to_same_auroc_vs_random": 1.0}  # at most: the budget ended before
    assert figures["epochs_tpe_asha"] == "more than 3"
