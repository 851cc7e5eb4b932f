"""`brgsa train --dry-run`: numbers for a person and for a program, and a refusal; nothing is started."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commandline import brgsa
from refusals import refused

from brgsa_platform.config import load_config
from brgsa_platform.planning.dry_run import CARD, dry_run

pytestmark = pytest.mark.ray  # the store is made with it

SETTINGS = [
    "data={style: report, unit: volume}",
    "model.vision.volume=[16, 16, 8]",
    "train.batch_size=8",
    "train.epochs=3",
]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CARD, "24")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_plan_of_a_run(pairs: Path, card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", str(pairs), "--preset", "paper-smoke", "--dry-run", *SETTINGS]
    plan = json.loads(brgsa(*words, "--json").out)
    assert (plan["epochs"], plan["volumes"], plan["workers"], plan["card_gib"]) == (3, 48, 1, 24.0)
    assert (plan["steps"], plan["items"]) == (3 * 6, 48)
    for unit in ("scan", "text"):  # one of two reconstructions
        drawn = json.loads(brgsa(*words, f"data.unit={unit}", "--json").out)
        assert (drawn["steps"], drawn["items"], drawn["volumes"]) == (3 * 3, 24, 48)
    assert plan["shards"] >= 1
    assert plan["peak_gib"] == pytest.approx(sum(plan["budget"]["memory"].values()))
    faster = json.loads(brgsa(*words, "--json", "--mfu", "0.8").out)
    assert faster["hours"] == pytest.approx(plan["hours"] / 2)
    text = brgsa(*words).out
    assert f"{plan['steps']} steps" in text
    assert "TFLOP" in text
    assert not re.search(r" 0(\.0+)? (GiB|MiB|h)\b|: *$", text, re.MULTILINE)  # small as it is
    assert not list(tmp_path.iterdir())  # no run was begun


def test_a_card_too_small_for_the_plan(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CARD, "1.3")
    large = ["model.vision={width: 192, depth: 12, heads: 4, mlp: 768, patch: [2, 2, 2]}", "train.batch_size=24"]
    config = load_config("paper-smoke", overrides=[*SETTINGS, *large, "train.precision=bf16"])
    with refused("card-too-small", field="train.checkpoint_activations"):
        dry_run(str(pairs), config, 0.4)


def test_no_card_is_seen(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CARD, raising=False)
    plan = dry_run(str(pairs), load_config("paper-smoke", overrides=[*SETTINGS, "train.gpu=false"]), 0.4)
    assert plan.card_gib is None
    assert plan.budget.precision == "32"
    assert "no card seen" in plan.to_text()


@pytest.mark.parametrize("value", ["big", "0", "-1"])
def test_a_card_that_is_no_number(pairs: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(CARD, value)
    with refused("bad-variable", field=CARD, value=value):
        dry_run(str(pairs), load_config("paper-smoke", overrides=SETTINGS), 0.4)


@pytest.mark.parametrize("mfu", [0.0, 1.5])
def test_an_mfu_that_cannot_be(pairs: Path, card: None, mfu: float) -> None:
    with refused("impossible-value", field="--mfu", value=mfu):
        dry_run(str(pairs), load_config("paper-smoke", overrides=SETTINGS), mfu)


def test_a_store_that_does_not_serve(pairs: Path, card: None) -> None:
    with refused("crop-too-large", field="model.vision.volume"):
        dry_run(str(pairs), load_config("paper-smoke", overrides=["data.style=report"]), 0.4)
