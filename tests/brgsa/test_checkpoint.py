"""Checkpoints: the same model back bit for bit; a failure leaves the old one; damage is named; no code of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused

from brgsa import checkpoint
from brgsa.config import VisionConfig
from brgsa.model import BrgSA

FIELDS_SINCE = ("mean", "std", "evaluation", "positions", "coordinates", "norm_eps")  # of the vision tower, format 1
Build = Callable[..., BrgSA]
TOWERS = {
    "vit3d": VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16),
    "cnn3d": VisionConfig(name="cnn3d", volume=(16, 16, 8), width=4, windows=((-1000, -200), (-160, 240))),
    "resnet10": VisionConfig(name="resnet10", volume=(16, 16, 8), width=4, norm="batch"),
}


@pytest.fixture(scope="module")
def saved(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a training can go on from; tests damage copies of it."""
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    folder = tmp_path_factory.mktemp("run") / "epoch-0001"
    return checkpoint.save(folder, model, {"labels": ["A"]}, training={"epoch": 1}, optimizer=optimizer)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def step(model: BrgSA, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    size = model.config.vision.volume
    volumes = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    v, t = model(volumes, model.text.tokenize(["There is pleural effusion.", "Seen."]))
    (v.bridged.square().mean() + t.bridged.square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("bank", [True, False])
def test_the_model_comes_back_bit_for_bit(
    build: Build, corpus: list[str], tmp_path: Path, name: str, bank: bool
) -> None:
    model = build(TOWERS[name], enabled=bank)
    volumes = torch.randn(2, 1, *TOWERS[name].volume)
    model.train()(volumes, model.text.tokenize(corpus[:2]))  # batch norm's statistics move
    model.eval()
    loaded = checkpoint.load(checkpoint.save(tmp_path / "c", model, {"labels": ["A"], "data": {"crop": [1, 2]}}))
    assert loaded.run == {"labels": ["A"], "data": {"crop": [1, 2]}}
    assert loaded.path == tmp_path / "c"
    assert loaded.model.config == model.config
    assert not any(module.training for module in loaded.model.modules())
    for ours, theirs in (
        (model.encode_volumes(volumes), loaded.model.encode_volumes(volumes)),
        (model.encode_texts(corpus), loaded.model.encode_texts(corpus)),
    ):
        assert torch.equal(ours.plain, theirs.plain)
        assert (ours.bridged is None) == (theirs.bridged is None) == (not bank)
        if ours.bridged is not None and theirs.bridged is not None:
            assert torch.equal(ours.bridged, theirs.bridged)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_training_goes_on_as_if_never_stopped(
    build: Build, tmp_path: Path, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    model = build()
    optimizer = kind(model.parameters(), lr=0.01, betas=(0.5, 0.999))
    for _ in range(3):
        step(model, optimizer)
    folder = checkpoint.save(tmp_path / "c", model, {}, training={"epoch": 3, "history": [0.5]}, optimizer=optimizer)
    resumed = checkpoint.load(folder).model
    fresh = kind(resumed.parameters(), lr=0.5)
    assert checkpoint.load_training(folder, fresh) == {"epoch": 3, "history": [0.5]}
    assert fresh.param_groups[0]["lr"] == 0.01
    for _ in range(2):
        step(model, optimizer)
        step(resumed, fresh)
    for name, weight in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize("before", [True, False])
def test_the_device_decides_whether_the_optimiser_is_fused(build: Build, tmp_path: Path, before: bool) -> None:
    """A run goes on on another kind of device, where the other kind of optimiser is the right one."""
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), fused=before)
    step(model, optimizer)
    checkpoint.save(tmp_path / "c", model, {}, training={}, optimizer=optimizer)
    fresh = torch.optim.Adam(build().parameters(), fused=not before)
    checkpoint.load_training(tmp_path / "c", fresh)
    assert [group["fused"] for group in fresh.param_groups] == [not before]


def test_weights_are_plain_safetensors_and_nothing_else_is_needed(build: Build, saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == build().state_dict().keys()
    for name in ("optimizer.pt", "training.json"):
        assert (saved / name).is_file()
    lean = checkpoint.save(tmp_path / "lean", build(), {})
    assert sorted(path.name for path in lean.iterdir()) == ["model.json", "model.safetensors", "run.json", "text"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow over `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fits", ["nothing", "weights", "weights and a part of the optimiser"])
def test_a_full_disk_leaves_the_old_one_whole(build: Build, tmp_path: Path, fits: str) -> None:
    model = build()
    folder = checkpoint.save(tmp_path / "c", model, {"labels": ["old"]})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    weights = (folder / "model.safetensors").stat().st_size
    size = {"nothing": 0, "weights": weights, "weights and a part of the optimiser": int(1.5 * weights)}[fits]
    with files_up_to(size), pytest.raises(Exception):  # noqa: B017 (each writer has its own)
        checkpoint.save(folder, model, {"labels": ["new"]}, training={}, optimizer=optimizer)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert checkpoint.load(folder).run == {"labels": ["old"]}


def test_a_model_or_run_that_cannot_be_saved_leaves_the_old_one(build: Build, tmp_path: Path) -> None:
    class Broken(BrgSA):
        def state_dict(self, *arguments: Any, **named: Any) -> Any:
            raise MemoryError

    folder = checkpoint.save(tmp_path / "c", build(), {"labels": ["old"]})
    broken = build()
    broken.__class__ = Broken
    with pytest.raises(MemoryError):
        checkpoint.save(folder, broken, {})
    with pytest.raises(TypeError):
        checkpoint.save(folder, build(), {"labels": {("not", "JSON"): 1}})
    assert checkpoint.load(folder).run == {"labels": ["old"]}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_rename_that_fails_puts_the_old_one_back(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint.save(tmp_path / "c", build(), {"labels": ["old"]})
    rename, calls = os.replace, []

    def fails_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("the disk went away")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_second)
    with pytest.raises(OSError, match="went away"):
        checkpoint.save(folder, build(), {"labels": ["new"]})
    assert checkpoint.load(folder).run == {"labels": ["old"]}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_an_end_while_the_old_one_is_removed_leaves_the_new_one(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint.save(tmp_path / "c", build(), {"labels": ["old"]})

    def ends(path: Path, **named: Any) -> None:
        (Path(path) / "model.json").unlink()  # half removed
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", ends)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, build(), {"labels": ["new"]})
    assert checkpoint.load(folder).run == {"labels": ["new"]}
    # What lies about is hidden, so that nobody takes it for a checkpoint.
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path != folder)


def test_saving_over_an_old_one_replaces_it(build: Build, tmp_path: Path) -> None:
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    folder = checkpoint.save(tmp_path / "deep" / "c", model, {"n": 1}, training={}, optimizer=optimizer)
    checkpoint.save(folder, build(size=8), {"n": 2})
    loaded = checkpoint.load(str(folder))
    assert loaded.run == {"n": 2}
    assert loaded.model.config.bank.size == 8
    assert not (folder / "optimizer.pt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("gone", "code", "named"),
    [
        ("model.json", "not-a-checkpoint", ""),
        ("run.json", "checkpoint-damaged", "run.json"),
        ("model.safetensors", "checkpoint-damaged", "model.safetensors"),
        ("text", "checkpoint-damaged", "text"),
        ("text/config.json", "checkpoint-damaged", "text"),
        ("text/tokenizer.json", "checkpoint-damaged", "text"),
    ],
)
def test_a_missing_file_is_named(copy: Path, gone: str, code: str, named: str) -> None:
    target = copy / gone
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with refused(code, field=str(copy / named)) as refusal:
        checkpoint.load(copy)
    assert str(copy) in str(refusal.value)


def load_all(folder: Path) -> None:
    model = checkpoint.load(folder).model
    checkpoint.load_training(folder, torch.optim.Adam(model.parameters()))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "run.json", "text/config.json", "optimizer.pt"])
def test_a_cut_file_is_named(copy: Path, name: str, share: float) -> None:
    target = copy / name
    whole = target.read_bytes().rstrip()
    target.write_bytes(whole[: int(share * len(whole))])
    with refused("checkpoint-damaged", field=str(copy / name.removesuffix("/config.json"))):
        load_all(copy)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"format": 1, "vision": [], "text": {}, "bank": {}}'])
@pytest.mark.parametrize("name", ["model.json", "text/config.json", "text/tokenizer.json"])
def test_json_of_something_else_is_named(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    code = "checkpoint-format" if (name, content) == ("model.json", "{}") else "checkpoint-damaged"
    with refused(code, field=str(copy / name.partition("/")[0])):
        checkpoint.load(copy)


def test_another_configuration_is_named(build: Build, copy: Path) -> None:
    tree = json.loads((copy / "model.json").read_text())

    def change(**sections: Any) -> None:
        (copy / "model.json").write_text(json.dumps({**tree, **sections}))

    for bank in ({"size": 7}, {"enabled": False}):
        change(bank={**tree["bank"], **bank})
        with refused("checkpoint-mismatch", field="bank.vectors", value=(6, 10)):
            checkpoint.load(copy)
    change(vision={**tree["vision"], "depth": 2})
    with refused("checkpoint-mismatch", field="vision.blocks.1.attn.proj.bias", value="nothing"):
        checkpoint.load(copy)
    for vision in ({"heads": 0}, {"deep": 2}):
        change(vision={**tree["vision"], **vision})
        with refused("checkpoint-damaged", field=str(copy / "model.json")):
            checkpoint.load(copy)
    with refused("checkpoint-mismatch", field="bank.vectors", value=(6, 10)):
        checkpoint.load_weights(build(size=9), copy)
    change(format=99)
    with refused("checkpoint-format", field=str(copy / "model.json"), value=99):
        checkpoint.load(copy)


def test_a_checkpoint_of_format_1_is_the_model_that_it_was(build: Build, corpus: list[str], tmp_path: Path) -> None:
    """Before there were fields for them: no standardisation, a learned table, words averaged, texts as written."""
    standardised = {"mean": 0.0, "std": 1.0, "evaluation": "centre"}
    was = replace(TOWERS["vit3d"], positions="learned", coordinates="index", norm_eps=1e-6, **standardised)
    model = build(was, text=replace(build().config.text, pool="words", form="written"))
    folder = checkpoint.save(tmp_path / "c", model, {})
    tree = json.loads((folder / "model.json").read_text())
    for section, fields in {"vision": FIELDS_SINCE, "text": ("pool", "form")}.items():
        for field in fields:
            del tree[section][field]
    (folder / "model.json").write_text(json.dumps({**tree, "format": 1}))
    loaded = checkpoint.load(folder).model
    assert loaded.config == model.config
    volumes = torch.rand(2, 1, 8, 8, 4)
    assert torch.equal(loaded.encode_volumes(volumes).plain, model.encode_volumes(volumes).plain)
    assert torch.equal(loaded.encode_texts(corpus).plain, model.encode_texts(corpus).plain)


@pytest.mark.parametrize("content", [{}, [1], 3, {"state": {}, "param_groups": []}])
def test_another_optimisers_state_is_refused(build: Build, copy: Path, content: object) -> None:
    torch.save(content, copy / "optimizer.pt")
    with refused("checkpoint-damaged", field=str(copy / "optimizer.pt")):
        checkpoint.load_training(copy, torch.optim.Adam(build().parameters()))


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("bare", [False, True])
def test_no_pickle_runs_code(build: Build, copy: Path, tmp_path: Path, bare: bool) -> None:
    target = tmp_path / "ran"
    trap = {"state": Trap(target), "param_groups": []}
    pickle.loads(pickle.dumps(trap))
    assert target.exists(), "the trap works"
    target.unlink()
    if bare:
        (copy / "optimizer.pt").write_bytes(pickle.dumps(trap, protocol=2))
    else:
        torch.save(trap, copy / "optimizer.pt")
    with refused("checkpoint-damaged", field=str(copy / "optimizer.pt")):
        checkpoint.load_training(copy, torch.optim.Adam(build().parameters()))
    shutil.copy(copy / "optimizer.pt", copy / "model.safetensors")
    with refused("checkpoint-damaged", field=str(copy / "model.safetensors")):
        checkpoint.load(copy)
    assert not target.exists()


def test_no_text_tower_runs_code(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (copy / "text" / "config.json").write_text(json.dumps(own))
    (copy / "text" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with refused("checkpoint-damaged", field=str(copy / "text")):
        checkpoint.load(copy)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in "".join(capsys.readouterr())  # nor is it asked whether it may


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        done.append(f"rename to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.save(tmp_path / "epoch-0001", build(), {}, training={"epoch": 1})
    renamed = done.index("rename to epoch-0001")
    assert {"model.safetensors", "model.json", "run.json", "training.json"} <= set(done[:renamed])
    assert done[renamed + 1 :] == [tmp_path.name]


def test_only_a_phantom_s_checkpoint_says_so() -> None:
    assert "synthetic" in checkpoint.phantom_warning({"data": {"phantom": True}})
    for run in ({}, {"data": {}}, {"data": {"phantom": False}}):
        assert checkpoint.phantom_warning(run) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pleural effusion", True),
        ("There is no PLEURAL effusion.", True),
        ("Calcification", True),  # RAD-ChestCT's one stands for CT-RATE's two
        ("Pericardial effusion", False),
        ("Bronchial thickening", False),
        ("There is cardiomegaly.", False),
    ],
)
def test_what_a_checkpoint_was_supervised_on(text: str, expected: bool) -> None:
    run = {"supervised": ["Pleural effusion", "Arterial wall calcification", "Peribronchial thickening"]}
    assert checkpoint.is_supervised(run, text) == expected
    assert not checkpoint.is_supervised({}, text)  # of an earlier version
