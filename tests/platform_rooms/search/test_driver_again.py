"""A search's command given again: by a person, or by a cluster that tries a job once more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brgsa.errors import UserError
from brgsa_platform.cli.main import app
from brgsa_platform.config import load_config
from brgsa_platform.search.driver import _check_same, _claim
from brgsa_platform.search.spec import SEARCH_FILE, SearchSpec


def test_the_same_command_begins_a_search_and_goes_on_with_it(tmp_path: Path) -> None:
    """A cluster tries again with the command that it has; what the search says of its own store shows which way it went."""
    command = ["tune", "--resume=s", f"--out={tmp_path}", f"--data={tmp_path}/new", "--space=cmki"]
    with pytest.raises(UserError, match="There is no search s"):
        app(command[:3], standalone_mode=False)
    with pytest.raises(UserError, match=f"{tmp_path}/new"):
        app(command, standalone_mode=False)
    (tmp_path / "s").mkdir()
    begun = SearchSpec(
        spaces=["cmki"],
        parameters=[],
        base={},
        store=f"{tmp_path}/old",
        data="",
        preset=None,
        goals=[],
        sampler="tpe",
        pruner="none",
        seed=0,
    )
    (tmp_path / "s" / SEARCH_FILE).write_text(json.dumps(vars(begun)))
    with pytest.raises(UserError, match=f"{tmp_path}/old"):
        app(command[:3], standalone_mode=False)


def test_another_search_is_not_taken_for_the_one_that_began() -> None:
    base = json.loads(json.dumps(load_config("demo").to_dict()))
    parameters = [{"field": "loss.temperature", "low": 0.01}]
    began = SearchSpec(["cmki"], parameters, base, "/s", "x", "demo", ["val/auroc"], "tpe", "asha", 0, None, "run-1")
    _check_same("s", began, replace(began, base=load_config("demo").to_dict(), parent_run=""))
    warmer = load_config("demo", overrides=["loss.temperature=0.3"]).to_dict()
    for changed, words in (
        ({"sampler": "gp"}, "sampler tpe, not gp"),
        ({"base": warmer}, "loss.temperature 0.05, not 0.3"),
        ({"store": "/t", "data": "y"}, "data x, not y"),
        ({"parameters": [{"field": "loss.temperature", "low": 0.02}]}, "other ranges"),
    ):
        with pytest.raises(UserError, match=f"The search s began with {words}: give the options that it began with"):
            _check_same("s", began, replace(began, **changed))  # type: ignore[arg-type]


def test_a_search_killed_before_it_began_does_not_hold_its_name(tmp_path: Path) -> None:
    spec = SearchSpec([], [], {}, "", "", None, [], "tpe", "none", 0)
    (tmp_path / "empty").mkdir()
    _claim(tmp_path / "empty", spec)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is no search"):
        _claim(tmp_path / "full", spec)
