"""Files of weights: their tensors come out, objects beside them are left out by name, and no code of theirs runs."""

from __future__ import annotations

import enum
import importlib
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused

from brgsa.weights.reading import read_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Kind(enum.Enum):
    ONE = 1


class Settings:
    """A library's configuration: attributes, an enum, and a dict of its own kind inside."""

    def __init__(self) -> None:
        self.inner, self.kind = Own(lr=0.1), Kind.ONE


class Own(dict[str, Any]):
    """A dict with attributes, as Lightning's."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.note = "mine"


class Acting:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def test_a_lightning_file_gives_its_tensors_and_names_the_rest(tmp_path: Path) -> None:
    tree = {"state_dict": OrderedDict(TENSORS), "hyper_parameters": Settings(), "epoch": 3}
    torch.save(tree, tmp_path / "model.ckpt")
    read = read_weights(tmp_path / "model.ckpt")
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[name], TENSORS[name]) for name in TENSORS)
    module = Settings.__module__
    assert set(read.skipped) == {
        "hyper_parameters",
        "epoch",
        *(f"{module}.{name}" for name in ("Settings", "Own", "Kind")),
    }


def test_the_classes_of_a_file_are_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("class Config: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("theirs").Config
    torch.save({"state_dict": TENSORS, "c": kind()}, tmp_path / "model.pt")
    del sys.modules["theirs"]
    assert "theirs.Config" in read_weights(tmp_path / "model.pt").skipped
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("function", [os.system, eval, subprocess.check_call, getattr, exec])
def test_a_file_with_code_is_refused_and_runs_nothing(tmp_path: Path, function: Any) -> None:
    mark = tmp_path / "mark"
    arguments: dict[Any, tuple[Any, ...]] = {
        os.system: (f"touch {mark}",),
        subprocess.check_call: (["touch", str(mark)],),
        getattr: ("text", "upper"),
    }
    args = arguments.get(function, (f"open({str(mark)!r}, 'w')",))
    torch.save({"state_dict": TENSORS, "config": Acting(function, *args)}, tmp_path / "model.pt")
    with refused("weights-with-code", field=str(tmp_path / "model.pt")):
        read_weights(tmp_path / "model.pt")
    assert not mark.exists()


def test_torchs_format_before_1_6_is_read_and_its_code_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pth").tensors.keys() == TENSORS.keys()
    torch.save({**TENSORS, "x": Acting(os.system, "true")}, tmp_path / "bad.pth", _use_new_zipfile_serialization=False)
    with refused("weights-with-code", value="posix.system"):
        read_weights(tmp_path / "bad.pth")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    from safetensors.torch import save_file

    file = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(TENSORS, file)
    else:
        save_file(TENSORS, str(file))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with refused("weights-damaged", field=str(file), value="is truncated or damaged"):
        read_weights(file)


@pytest.mark.parametrize("name", ["table.csv", "model.safetensors"])
def test_the_reason_is_one_of_ours(tmp_path: Path, name: str) -> None:
    """A table given for weights: torch's own words are of its versions, several lines long."""
    file = tmp_path / name
    file.write_text("VolumeName,text\n" + "abc,hello world\n" * 100, encoding="utf-8")
    with refused("weights-damaged", field=str(file), value="is no file of weights"):
        read_weights(file)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with refused("no-weights", field=str(tmp_path)):
        read_weights(tmp_path)
    with refused("no-weights"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "empty.pt")
    with refused("no-tensors"):
        read_weights(tmp_path / "empty.pt")
