"""What a search refuses before anything starts, and what a command given again does: by a person, or by a cluster."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from searches import make_spec

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.cli.main import app
from brgsa_platform.config import load_config
from brgsa_platform.runtime.locks import Holder, held
from brgsa_platform.search.driver import resume, tune
from brgsa_platform.search.spec import SearchMethod, SearchOptions, SearchSpec, write_spec
from brgsa_platform.store.store import Store

pytestmark = pytest.mark.ray


def begun(folder: Path, store: str, data: str = "store-1") -> SearchSpec:
    """A folder with a search over `cmki-small` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = replace(make_spec(tune_spaces.load(["cmki-small"])), spaces=["cmki-small"], store=store, data=data)
    write_spec(folder, spec)
    return spec


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"method": SearchMethod(goals=("common", "rare"))}, "goal-not-measured", "--goal"),
        ({"options": SearchOptions(points=[{"loss.temperature": 9}])}, "point-outside", "--point"),
        ({"options": SearchOptions(warm_from=["other"])}, "other-data", "--warm-from"),
    ],
)
def test_what_the_store_and_the_space_do_not_allow(
    pairs: Path, tmp_path: Path, given: dict[str, Any], code: str, field: str
) -> None:
    begun(tmp_path / "other", "elsewhere")
    with pytest.raises(UserError) as error:
        tune(pairs, load_config("demo-smoke"), ["cmki-small"], folder=tmp_path / "new", **given)
    assert (error.value.code, error.value.field) == (code, field)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_not_begun_in(pairs: Path, tmp_path: Path) -> None:
    begun(tmp_path / "search", str(pairs))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()
    config = load_config("demo-smoke")
    for name, code in (("search", "search-exists"), ("thesis", "folder-taken")):
        with pytest.raises(UserError) as error:
            tune(pairs, config, ["cmki-small"], folder=tmp_path / name)
        assert (error.value.code, error.value.field, error.value.value) == (code, "--name", name)


def test_a_search_killed_before_it_began_does_not_hold_its_name(pairs: Path, tmp_path: Path) -> None:
    """It leaves its lock and an unused journal at most; the next one is refused for another reason, at its trials."""
    dead = replace(Holder.this_process("tune"), pid=2**22 + 1)  # no process has so large a number
    (tmp_path / "lock-0123.json").write_text(json.dumps(asdict(dead)))
    (tmp_path / "study.journal").write_text("half a li")
    wide = load_config("demo-smoke", overrides=["train.workers=8"])
    with pytest.raises(UserError) as error:
        tune(pairs, wide, ["cmki-small"], folder=tmp_path)
    assert error.value.code == "cluster-too-small"


def test_what_cannot_be_gone_on_with(pairs: Path, tmp_path: Path) -> None:
    store = Store.open(pairs)
    begun(tmp_path / "s", store.path, store.fingerprint)
    begun(tmp_path / "old", store.path, "other data")
    point = SearchOptions(points=[{"loss.temperature": 0.1}])
    for name, more, code in (
        ("cold", {}, "unknown-search"),
        ("s", {"spaces": ["cmki"]}, "other-space"),
        ("s", {"options": point}, "begun-already"),
        ("s", {"options": SearchOptions(warm_from=["old"])}, "begun-already"),
        ("old", {}, "store-changed"),
    ):
        with pytest.raises(UserError) as error:
            resume(tmp_path / name, **more)  # type: ignore[arg-type]
        assert error.value.code == code
    with held(tmp_path / "s", "tune"), pytest.raises(UserError) as error:
        resume(tmp_path / "s")
    assert (error.value.code, error.value.field) == ("folder-in-use", str(tmp_path / "s"))


def test_the_same_command_begins_a_search_and_goes_on_with_it(tmp_path: Path) -> None:
    """A cluster tries again with the command that it has; the store that is missing shows which way it went."""
    again = ["tune", "--resume=s", f"--out={tmp_path}"]
    begin = [*again, f"--data={tmp_path}/new", "--space=cmki"]
    with pytest.raises(UserError) as error:
        app(again, standalone_mode=False)
    assert (error.value.code, error.value.field) == ("unknown-search", "s")
    with pytest.raises(UserError, match=f"{tmp_path}/new"):
        app(begin, standalone_mode=False)
    begun(tmp_path / "s", f"{tmp_path}/old")
    with pytest.raises(UserError, match=f"{tmp_path}/old"):
        app(again, standalone_mode=False)
