"""What a search refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search.driver import tune
from brgsa_platform.search.spec import SearchOptions

pytestmark = pytest.mark.ray


def test_a_goal_that_the_store_cannot_measure(pairs: Path, tmp_path: Path) -> None:
    config = load_config("demo-smoke")
    with pytest.raises(UserError, match="no rare abnormality that is both present and absent in its validation split"):
        tune(pairs, config, ["cmki-small"], goals=["common", "rare"], out=tmp_path / "searches")
    assert not (tmp_path / "searches").exists()


def test_ends_goals_and_points_that_cannot_be(pairs: Path, tmp_path: Path) -> None:
    config = load_config("demo-smoke")
    for options, more, words in (
        (SearchOptions(trials=None), {}, "A search needs an end"),
        (SearchOptions(trials=0), {}, "--trials must be at least 1"),
        (SearchOptions(hours=0.0), {}, "--hours must be above 0"),
        (SearchOptions(), {"goals": ["auroc", "auroc"]}, "one or two different of auroc, common, rare"),
        (SearchOptions(points=[{"loss.temperature": 9}]), {}, "lies outside the space"),
    ):
        with pytest.raises(UserError, match=words):
            tune(pairs, config, ["cmki-small"], options, out=tmp_path / "searches", **more)  # type: ignore[arg-type]
    assert not (tmp_path / "searches").exists()
