"""What arms gain over each other, from results without a training."""

from __future__ import annotations

import numpy as np
import pytest
from searches import make_spec

from brgsa.protocols import BootstrapChoice, Protocol
from brgsa_platform.evaluation.result import EvaluationResult, tabulate
from brgsa_platform.search.repeats.ablation import ARMS, BOTH, CONTROL, PAIRS
from brgsa_platform.search.repeats.confirm import Confirmation
from brgsa_platform.search.repeats.gains import arm_gains, group_columns, seed_means
from brgsa_platform.search.spaces import drawn_config

NAMES = ["Cardiomegaly", "Emphysema", "Lung nodule", "Pneumothorax"]
LABELS = (np.random.default_rng(0).random((160, 4)) < 0.3).astype(float)
PROTOCOL = Protocol(bootstrap=BootstrapChoice(unit="volume", resamples=300))


def result(gain: float, seed: int) -> EvaluationResult:
    scores = LABELS * (0.5 + gain) + np.random.default_rng(seed).normal(size=LABELS.shape)
    return tabulate(NAMES, LABELS, scores, PROTOCOL, thresholds=np.zeros(4), rare=["Pneumothorax"])


@pytest.fixture(scope="module")
def results() -> dict[str, list[EvaluationResult]]:
    return {
        "base": [result(0.0, s) for s in (1, 2)],
        "good": [result(1.5, s) for s in (3, 4)],
        "same": [result(0.0, s) for s in (5, 6)],
    }


def test_the_unseen_are_a_group_of_their_own(results: dict[str, list[EvaluationResult]]) -> None:
    one = results["base"][0]
    assert group_columns(one, "common", ["Emphysema"]) == [0, 2]
    assert group_columns(one, "unseen", ["Emphysema", "Pneumothorax"]) == [1, 3]
    assert group_columns(one, "rare", ["Pneumothorax"]) == []
    assert seed_means([one], [0, 2]) == pytest.approx([np.mean(one.bootstrap.point["auroc"][[0, 2]])])


def test_only_the_better_arm_is_better_beyond_chance(results: dict[str, list[EvaluationResult]]) -> None:
    gains = arm_gains(results, [("good", "base"), ("same", "base")], "common")
    assert [gain.beyond_chance for gain in gains] == [True, False]
    assert gains[0].p_holm == pytest.approx(2 * gains[0].p)
    assert arm_gains(results, [("good", "base")], "unseen") == []


@pytest.mark.parametrize(("arm", "verdict"), [("good", "beats the base beyond chance"), ("same", "does not beat")])
def test_a_search_s_best_is_confirmed_or_not(
    results: dict[str, list[EvaluationResult]], arm: str, verdict: str
) -> None:
    from pathlib import Path

    gains = arm_gains(results, [(arm, "base")], "macro")
    means = {name: seed_means(of, range(4)) for name, of in results.items()}
    found = Confirmation(Path("search"), "macro", [1, 2], means, gains)
    assert found.confirmed == (arm == "good")
    assert verdict in found.summary()
    assert found.to_json()["gains"][arm]["beyond_chance"] == found.confirmed
    assert not Confirmation(Path("search"), "macro", [1, 2], {}, []).confirmed


def test_the_arms_differ_in_what_they_are_named_for() -> None:
    base = make_spec([]).base
    configs = {arm.name: drawn_config(base, arm.values) for arm in ARMS}
    assert configs[BOTH] == base
    assert {name: config.model.bank.enabled for name, config in configs.items()} == {
        "clip": False, "+ summaries": False, "+ bank": True, "both": True, "summaries, plain=2": False
    }  # fmt: skip
    assert [name for name, config in configs.items() if config.data.style == "report"] == ["clip", "+ bank"]
    assert configs[CONTROL].loss.plain == 2 * base.loss.plain
    assert {name for pair in PAIRS for name in pair} == set(configs)
