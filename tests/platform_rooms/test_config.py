"""Run configurations: presets, files that extend one another, overrides, and the sentence for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa_platform.config import RunConfig, flatten, load_config, merge, parse_overrides, preset_names, read_preset


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_loads_and_comes_back(name: str) -> None:
    config = load_config(name)
    tree = config.to_dict()
    assert RunConfig.from_tree(json.loads(json.dumps(tree))) == config
    assert RunConfig.from_tree(yaml.safe_load(yaml.safe_dump(tree))) == config
    assert RunConfig.from_tree(tree).to_dict() == tree


def test_the_presets_there_are() -> None:
    plain = {name for name in preset_names() if not name.endswith("-smoke")}
    assert plain == {
        *("paper", "paper-clip", "ct-rate-h100", "ct-rate-24gb"),
        *("demo", "demo-clip", "demo-clip-summaries"),
    }
    assert {f"{name}-smoke" for name in plain} | plain == set(preset_names())  # each has its twin of seconds


@pytest.mark.parametrize("name", ["demo", "demo-smoke", "paper", "paper-smoke"])
def test_the_baseline_differs_in_bank_and_text_alone(name: str) -> None:
    baseline = name.replace("-smoke", "-clip-smoke") if "-smoke" in name else f"{name}-clip"
    ours, theirs = load_config(name), load_config(baseline)
    assert ours.model.bank.enabled
    assert not theirs.model.bank.enabled
    assert theirs.data.style == "report"
    bank, data = ours.to_dict()["model"]["bank"], ours.to_dict()["data"]
    assert merge(theirs.to_dict(), {"model": {"bank": bank}, "data": data}) == ours.to_dict()


def test_the_papers_hyper_parameters() -> None:
    config = load_config("paper")
    assert (config.optim.name, config.optim.lr, config.optim.betas) == ("adam", 5e-5, (0.5, 0.999))
    assert (config.optim.weight_decay, config.optim.schedule, config.optim.patience) == (1e-6, "plateau", 5)
    assert (config.optim.clip, config.train.batch_size, config.train.epochs) == (0.25, 64, 39)
    assert (config.train.precision, config.data.style, config.data.sentences) == ("16", "positives", 5)
    assert (config.model.bank.size, config.model.vision.volume) == (2048, (224, 224, 112))
    vision, text, train = config.model.vision, config.model.text, config.train
    assert (vision.mean, vision.std, vision.evaluation, vision.norm_eps) == (0.4978, 0.2449, "whole", 1e-5)
    assert (vision.coordinates, vision.positions) == ("unit", "fixed")
    assert (text.max_tokens, text.layers_summed, text.pool, text.form) == (97, 4, "positions", "plain")
    assert (config.data.unit, config.data.distinct_texts, config.data.drawn) == ("text", True, "exactly")
    assert (train.select, train.stop_after) == ("loss", 10)
    data = config.data  # no augmentation but the random crop
    assert (data.flip, data.rotate, data.transforms, data.scale, data.shift, data.noise) == ((0, 0, 0), 0, (), 0, 0, 0)


def test_the_defaults_are_the_papers_but_for_the_text_tower() -> None:
    ours, papers = RunConfig().to_dict(), load_config("paper").to_dict()
    changed = {key for key, value in flatten(papers).items() if flatten(ours)[key] != value}
    assert changed == {"model.text.name", "data.sentences", "train.precision"}


def test_the_demo_keeps_what_its_figures_were_measured_with() -> None:
    for name in ("demo", "demo-clip", "demo-clip-summaries", "demo-smoke", "demo-clip-smoke"):
        config = load_config(name)
        vision, text, data, train = config.model.vision, config.model.text, config.data, config.train
        assert (vision.mean, vision.std, vision.evaluation) == (0.0, 1.0, "centre")
        assert (text.pool, text.form) == ("words", "written")
        assert (data.unit, data.distinct_texts, data.drawn) == ("volume", False, "up_to")
        assert (train.select, train.stop_after) == ("auroc", None)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 0.5, clip: 2}\nmodel: {bank: {size: 33}}\n")
    config = load_config("demo-smoke", file, ["optim.lr=0.25"], base={"train": {"seed": 7, "epochs": 9}})
    assert config.optim.lr == 0.25  # command line
    assert config.optim.clip == 2  # file
    assert config.model.bank.size == 33  # file, over demo-smoke's 16
    assert config.model.bank.init == "orthogonal"  # the rest of the section stays
    assert config.model.embedding == 32  # demo-smoke
    assert config.optim.betas == (0.9, 0.98)  # demo, which demo-smoke extends
    assert (config.train.seed, config.train.epochs) == (7, 1)  # base, under the preset
    assert load_config() == RunConfig()


def test_files_extend_presets_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.yaml").write_text("extends: demo\noptim: {lr: 0.125, clip: 3}\n")
    (tmp_path / "mine.yaml").write_text("extends: shared/base.yaml\noptim: {clip: 4}\n")
    monkeypatch.chdir("/")  # a name in a file is looked for beside that file
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.optim.lr, config.optim.clip) == (0.125, 4)
    assert config.model == load_config("demo").model
    assert "extends" not in read_preset(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "code", "field"),
    [
        ("extends: mine.yaml", "bad-extends", "mine.yaml"),
        ("extends: [demo, paper]", "bad-extends", "mine.yaml"),
        ("extends: dmeo", "no-preset", ""),
        ("extends: gone.yaml", "unreadable-config", "gone.yaml"),
        ("", "unreadable-config", "mine.yaml"),
        ("- model", "unreadable-config", "mine.yaml"),
        ("model: {", "unreadable-config", "mine.yaml"),
        ("optim: {rate: 1}", "unknown-key", "optim.rate"),
        ("data:", "impossible-value", "data"),
        ("1: 2", "impossible-value", "1"),
    ],
)
def test_a_file_that_cannot_be_a_preset(tmp_path: Path, text: str, code: str, field: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    field = str(tmp_path / field) if field.endswith(".yaml") else field
    with refused(code, field=field) as caught:
        load_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_a_circle_of_two_files_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with refused("bad-extends") as caught:
        load_config(str(tmp_path / "a.yaml"))
    assert " → ".join(str(tmp_path / name) for name in ("a.yaml", "b.yaml", "a.yaml")) in str(caught.value)


@pytest.mark.parametrize("name", ["latin.yaml", "", "gone.yaml"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "latin.yaml").write_bytes("data: {style: é}".encode("latin-1"))
    with refused("unreadable-config", field=str(tmp_path / name)):
        load_config(file=tmp_path / name)


@pytest.mark.parametrize(
    ("override", "nearest", "known"),
    [
        ("modle.embedding=3", "model", "model, loss, data, optim, train"),
        ("model.embeding=3", "embedding", "vision, text, bank, embedding"),
        ("model.bank.sise=3", "size", "enabled, size"),
        ("model.vision.nmae=x", "name", "name, weights, volume"),
        ("loss.temprature=1", "temperature", "contrast, temperature"),
        ("optim.warmup=1", "warmup_steps", "name, lr"),
        ("train.zzzzzz=1", None, "epochs, batch_size"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name_and_all_known_ones(
    override: str, nearest: str | None, known: str
) -> None:
    key = override.partition("=")[0]
    with refused("unknown-key", field=key.removesuffix(".embedding")) as caught:
        load_config(overrides=[override])
    assert (f"(did you mean {nearest}?)" in str(caught.value)) == (nearest is not None)
    assert f": {known}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("model.bank.size=0", "model.bank"),
        ("model.bank.size=-3", "model.bank"),
        ("model.bank.size=big", "model.bank.size"),
        ("model.bank.init=zeros", "model.bank"),
        ("model.bank=3", "model.bank"),
        ("model.vision.name=vit4d", "model.vision"),
        ("model.vision.heads=0", "model.vision"),
        ("model.vision.heads=7", "model.vision"),
        ("model.vision.patch=[0, 16, 8]", "model.vision"),
        ("model.vision.volume=[225, 224, 112]", "model.vision"),
        ("model.vision.volume=[224, 224]", "model.vision.volume.2"),
        ("model.vision.windows=[[240, -160]]", "model.vision"),
        ("model.vision.std=0", "model.vision"),
        ("model.vision.norm_eps=-1", "model.vision"),
        ("train.stop_after=0", "train.stop_after"),
        ("model.text.heads=0", "model.text"),
        ("model.text.max_tokens=2", "model.text"),
        ("loss.temperature=0", "loss"),
        ("loss.temperature=.inf", "loss.temperature"),
        ("loss.same_text=drop", "loss.same_text"),
        ("loss.contrast=softmax", "loss.contrast"),
        ("loss.temperature_bounds=[1.0, 0.01]", "loss"),
        ("loss.bias_bounds=[0, -10]", "loss"),
        ("loss.labels=llm", "loss.labels"),
        ("data.sentences=0", "data.sentences"),
        ("data.flip=2", "data.flip.0"),
        ("data.flip=[0.5, 0.5]", "data.flip.2"),
        ("data.rotate=-0.5", "data.rotate"),
        ("data.transforms=[{prob: 0.5}]", "data.transforms.0.name"),
        ("data.shift=.nan", "data.shift"),
        ("data.shuffle_buffer=0", "data.shuffle_buffer"),
        ("data.cpus=0", "data.cpus"),
        ("data.object_store_share=1.5", "data.object_store_share"),
        ("optim.lr=0", "optim.lr"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.betas=[0.9, 1]", "optim.betas.1"),
        ("optim.name=sgd", "optim.name"),
        ("train.checkpoint_minutes=0", "train.checkpoint_minutes"),
        ("train.batch_size=1", "train.batch_size"),
        ("train.epochs=0", "train.epochs"),
        ("train.precision=8", "train.precision"),
        ("train.gpu=perhaps", "train.gpu"),
        ("train.seed=-1", "train.seed"),
        ("train.seed=4294967296", "train.seed"),
        ("train.workers=3", "train"),
        ("train.micro_batch=0", "train.micro_batch"),
        ("train.micro_batch=7", "train"),
        ("train.log_every=0", "train.log_every"),
        ("train.parallel=fsdp", "train"),
        ("train={parallel: fsdp, workers: 2, precision: 16}", "train"),
    ],
)
def test_an_impossible_value_is_named(override: str, field: str) -> None:
    key = override.partition("=")[0]
    with refused("impossible-value", field=field) as caught:
        load_config(overrides=[override])
    assert key.partition(".")[2] in str(caught.value)  # its section may find it; the sentence names the field itself
    assert "the command line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_holds_the_value() -> None:
    with refused("impossible-value", field="train.seed", value=-1):
        load_config(base={"train": {"seed": -1}})


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_that_numpy_takes(seed: int) -> None:
    assert load_config(overrides=[f"train.seed={seed}"]).train.seed == seed


def test_quarter_turns_need_a_square_crop() -> None:
    with refused("impossible-value") as caught:
        load_config("paper-smoke", overrides=["data.rotate=0.5", "model.vision.volume=[32, 16, 16]"])
    assert "data.rotate" in str(caught.value)
    assert "model.vision.volume" in str(caught.value)
    assert load_config("paper-smoke", overrides=["data.rotate=0.5"]).data.rotate == 0.5


@pytest.mark.parametrize("workers", ["[2, 1]", "[0, 1]", "[1, 2, 3]", "[]", "-1", "1.5", "true", "many", "[1, 2.5]"])
def test_workers_that_cannot_be(workers: str) -> None:
    with refused("impossible-value", field="train.workers", value=yaml.safe_load(workers)):
        load_config("demo", overrides=[f"train.workers={workers}"])


def test_a_range_of_workers_has_the_numbers_that_divide_the_batch() -> None:
    for workers, counts, part in (("[2, 8]", (2, 4, 8), 8), ("[1, 1]", (1,), 16), ("4", (4,), 4), ("0", (0,), 16)):
        train = load_config("demo", overrides=[f"train.workers={workers}"]).train
        assert train.worker_counts == counts
        assert train.local_batch == part
    for wrong in (["train.workers=[1, 3]"], ["train.workers=[3, 4]"], ["train={workers: [1, 4], micro_batch: 8}"]):
        with refused("impossible-value", field="train"):
            load_config("demo", overrides=["model.vision.norm=group", *wrong])
    tree = load_config("demo", overrides=["train.workers=[2, 4]"]).to_dict()
    assert RunConfig.from_tree(tree).to_dict() == tree


@pytest.mark.parametrize("micro_batch", [1, 4, 8])
def test_a_micro_batch_divides_a_workers_part(micro_batch: int) -> None:
    settings = ["train.batch_size=16", "train.workers=2", f"train.micro_batch={micro_batch}"]
    assert load_config(overrides=settings).train.local_batch == 8
    with refused("impossible-value", field="train"):
        load_config(overrides=[*settings[:2], "train.micro_batch=16"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["model.vision.name=resnet18", "train.checkpoint_activations=true"], "train.checkpoint_activations"),
        (["model.vision={name: resnet18, norm: batch}", "train.micro_batch=4"], "train.micro_batch"),
        (["model.vision.name=cnn3d", "train={parallel: fsdp, workers: 2, precision: 32}"], "train.parallel"),
    ],
)
def test_what_a_tower_does_not_allow(settings: list[str], key: str) -> None:
    with refused("impossible-value") as caught:
        load_config(overrides=settings)
    assert key in str(caught.value)


def test_the_same_run_on_one_card_and_on_eight() -> None:
    one, eight = load_config("ct-rate-24gb").to_dict(), load_config("ct-rate-h100").to_dict()
    differences = {key for key, value in flatten(one).items() if flatten(eight)[key] != value}
    assert differences == {"train.workers", "train.micro_batch"}


def test_one_flip_is_left_right() -> None:
    assert load_config(overrides=["data.flip=0.5"]).data.flip == (0.5, 0, 0)
    assert load_config(overrides=["data.flip=[0.1, 0.2, 0.3]"]).data.flip == (0.1, 0.2, 0.3)


def test_transforms_keep_their_arguments() -> None:
    spec = {"name": "RandGaussianSmooth", "prob": 0.2, "sigma_x": [0.5, 1.0]}
    config = load_config(base={"data": {"transforms": [spec]}})
    assert [found.model_dump() for found in config.data.transforms] == [spec]
    assert RunConfig.from_tree(config.to_dict()) == config


def test_values_of_overrides_are_yaml() -> None:
    config = load_config(
        overrides=[
            "optim.lr=1e-3",  # YAML 1.1 reads this as text
            "train.precision=32",
            "train.threads=null",
            "data.shuffle_sentences=false",
            "data.style=positives+negatives",
            "model.vision.windows=[[-1000, -200], [-160, 240]]",
            "model.bank={size: 4, init: kmeans}",
            "model.bank.size=5",
        ]
    )
    assert (config.optim.lr, config.train.precision, config.train.threads) == (0.001, "32", None)
    assert (config.data.shuffle_sentences, config.data.style) == (False, "positives+negatives")
    assert config.model.vision.windows == ((-1000, -200), (-160, 240))
    assert (config.model.bank.size, config.model.bank.init) == (5, "kmeans")


def test_the_last_override_wins() -> None:
    assert parse_overrides(["a.b=1", "a.c=x=y", "a.b=2"]) == {"a": {"b": 2, "c": "x=y"}}


@pytest.mark.parametrize("text", ["optim.lr", "=3", ".lr=3", "optim.=3", "", "data.style={"])
def test_what_is_no_override(text: str) -> None:
    with refused("bad-override", value=text):
        parse_overrides([text])


def test_flattened_keys_are_those_of_overrides() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None, "empty": {}}
    assert flatten(tree) == {"a.b": 1, "a.c.d": [2, {"e": 3}], "f": None}
    config = load_config("demo")
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(config.to_dict()).items()]
    assert load_config(overrides=overrides) == config


def test_a_configuration_does_not_change() -> None:
    config = RunConfig()
    with pytest.raises(Exception, match="frozen"):
        config.optim.lr = 3  # type: ignore[misc]


TREES: Any = st.recursive(
    st.integers(), lambda branch: st.dictionaries(st.sampled_from("abc"), branch, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@settings(deadline=None)  # the machine may be busy
@given(TREES, TREES, TREES)
def test_merging_is_layering(low: dict[str, Any], mid: dict[str, Any], high: dict[str, Any]) -> None:
    assert merge(low, {}) == merge({}, low) == merge(low, low) == low
    before = json.dumps(low)
    merged = merge(low, high)
    assert json.dumps(low) == before  # neither is changed
    assert merge(merged, high) == merged  # what lies on top is there
    assert merged.keys() == low.keys() | high.keys()


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["optim.lock=[sight]"], "optim.lock"),
        (["optim.lock=['vision:0']"], "optim.lock"),
        (["optim.lock=[text, 'text:1']"], "optim.lock"),
        (["optim.lock=['vision:3']"], ""),  # of two blocks
        (["optim.lock=['text:3']"], ""),
        (["model.vision={name: cnn3d}", "optim.lock=['vision:1']"], ""),
        (["optim.rates.text=0"], "optim.rates.text"),
    ],
)
def test_a_lock_or_rate_of_what_is_not_there(overrides: list[str], field: str) -> None:
    with refused("impossible-value", field=field):
        load_config("paper-smoke", overrides=overrides)


def test_a_rate_of_an_unknown_part() -> None:
    with refused("unknown-key", field="optim.rates.head"):
        load_config(overrides=["optim.rates.head=0.1"])
