"""The search spaces: those that ship load and fit the configuration; a wrong one is refused by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import tune_spaces
from brgsa.config import VisionConfig
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.search.spaces import check_space, drawn_config, field_names

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"cmki-small", "towers-small"}  # spaces for the demo's resolution
LARGE = {"towers"}  # and for the paper's; every other is for both
FITTING = [
    (space, preset)
    for space in tune_spaces.names()
    for preset, others in (("demo", LARGE), ("paper", SMALL))
    if space not in others
]


def write(folder: Path, text: str, name: str = "space.yaml") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def tree_value(config: RunConfig, field: str) -> object:
    value: object = config.to_dict()
    for part in field.split("."):
        value = value[part]  # type: ignore[index]
    return value


def test_the_spaces_that_ship() -> None:
    assert {"cmki", "cmki-small", "losses", "optim", "augment", "towers", "towers-small"} <= set(tune_spaces.names())


@pytest.mark.parametrize(("space", "preset"), FITTING)
def test_each_space_fits_its_presets(space: str, preset: str) -> None:
    base = load_config(preset)
    parameters = tune_spaces.load([space])
    check_space(parameters, base)
    for drawn in tune_spaces.corners(parameters):
        config = drawn_config(base, drawn)
        assert {field: tune_spaces.scalar(tree_value(config, field)) for field in drawn} == drawn


def test_spaces_that_belong_together_combine() -> None:
    for base, spaces in (
        ("paper", ["cmki", "losses", "optim", "augment", "towers"]),
        ("demo", ["cmki-small", "losses", "optim", "augment", "towers-small"]),
    ):
        parameters = tune_spaces.load(spaces)
        check_space(parameters, load_config(base))
        assert len(parameters) == sum(len(tune_spaces.load([space])) for space in spaces)


def test_the_missions_search() -> None:
    by_field = {p.field: p for p in tune_spaces.load(["cmki"])}
    assert set(by_field) == {"model.bank.size", "loss.temperature", "data.style"}
    size, temperature = by_field["model.bank.size"], by_field["loss.temperature"]
    assert (size.kind, size.low, size.high, size.log) == ("int", 64, 8192, True)
    assert (temperature.kind, temperature.low, temperature.high, temperature.log) == ("float", 0.01, 0.5, True)
    assert "positives+negatives" in by_field["data.style"].choices


def test_what_the_paper_used_lies_in_the_spaces_around_it() -> None:
    paper = load_config("paper")
    parameters = tune_spaces.load(["cmki", "losses", "optim", "augment", "towers"])
    values = {p.field: tree_value(paper, p.field) for p in parameters}
    for parameter in parameters:
        assert parameter.takes(values[parameter.field]) or not tune_spaces.active(parameter, values), parameter.field


@pytest.mark.slow
@pytest.mark.parametrize(("space", "preset"), [("towers", "paper"), ("towers-small", "demo")])
def test_every_corner_of_the_towers_is_a_tower_that_takes_its_volume(space: str, preset: str) -> None:
    # Shapes only: on the meta device nothing is computed, so the paper's towers cost nothing either.
    import torch

    from brgsa.vision import vision_tower

    made: dict[VisionConfig, int] = {}
    for drawn in tune_spaces.corners(tune_spaces.load([space])):
        config = drawn_config(load_config(preset), drawn).model
        if config.vision not in made:
            with torch.device("meta"):
                tower = vision_tower(config.vision)
                made[config.vision] = tower(torch.empty(2, 1, *config.vision.volume)).shape[-1]
        assert config.text.name != "small" or config.text.layers_summed <= config.text.depth
    assert len(made) > 8
    assert min(made.values()) >= 8


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("model.bank.size: {kind: int, low: 8, high: 4, why: x}", "empty-range", (8, 4)),
        ("model.bank.size: {kind: int, low: 4, high: 4, why: x}", "empty-range", (4, 4)),
        ("model.bank.size: {kind: int, lo: 4, high: 8, why: x}", "unknown-key", "lo"),
        ("model.bank.size: {kind: int, low: 4, why: x}", "not-a-number", None),
        ("model.bank.size: {kind: int, low: 4, high: 8.5, why: x}", "not-whole", 8.5),
        ("model.bank.size: {kind: int, low: true, high: 8, why: x}", "not-a-number", True),
        ("model.bank.size: {kind: number, low: 4, high: 8, why: x}", "unknown-kind", "number"),
        ("model.bank.size: {kind: [int], low: 4, high: 8, why: x}", "unknown-kind", ["int"]),
        ("model.bank.size: {low: 4, high: 8, why: x}", "unknown-kind", None),
        ("model.bank.size: {kind: int, low: 4, high: 8}", "no-why", None),
        ("model.bank.size: {kind: int, low: 4, high: 8, why: ' '}", "no-why", " "),
        ("model.bank.size: {kind: int, low: 4, high: 8, why: x, choices: [4]}", "unknown-key", "choices"),
        ("model.bank.size: {kind: int, low: 4, high: 9, step: 2, why: x}", "step-misses-end", 2),
        ("model.bank.size: {kind: int, low: 4, high: 8, step: 0, why: x}", "step-misses-end", 0),
        ("model.bank.size: {kind: int, low: 4, high: 8, step: 0.5, why: x}", "not-whole", 0.5),
        ("loss.temperature: {kind: float, low: 0.1, high: 1, step: 0.1, log: true, why: x}", "step-on-log", 0.1),
        ("loss.temperature: {kind: float, low: 0, high: 1, log: true, why: x}", "log-from-zero", 0.0),
        ("loss.temperature: {kind: float, low: -1.0, high: 1, log: true, why: x}", "log-from-zero", -1.0),
        ("loss.temperature: {kind: float, low: 0.1, high: 1, log: 2, why: x}", "log-not-boolean", 2),
        ("loss.temperature: {kind: float, low: 0.1, high: .inf, why: x}", "not-a-number", math.inf),
        ("optim.lr: {kind: float, low: 1e-5, high: 1.0, why: x}", "not-a-number", "1e-5"),
        ("optim.lr: {kind: float, low: '0.1', high: 1.0, why: x}", "not-a-number", "0.1"),
        ("data.style: {kind: categorical, why: x}", "no-choices", None),
        ("data.style: {kind: categorical, choices: [], why: x}", "no-choices", None),
        ("data.style: {kind: categorical, choices: findings, why: x}", "no-choices", None),
        ("data.style: {kind: categorical, choices: [a, b, a], why: x}", "choice-twice", "a"),
        ("data.style: {kind: categorical, choices: [a], low: 1, why: x}", "unknown-key", "low"),
        ("data.style: {value: findings, kind: categorical, why: x}", "kind-and-value", "categorical"),
        ("data.style: {value: findings}", "no-why", None),
        ("data.style: {value: findings, low: 1, why: x}", "unknown-key", "low"),
        ("data.style: {value: findings, wen: {a: b}, why: x}", "unknown-key", "wen"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, text: str, code: str, value: object) -> None:
    with pytest.raises(UserError) as refusal:
        tune_spaces.load([write(tmp_path, text)])
    field = text.partition(":")[0]
    assert (refusal.value.code, refusal.value.field, refusal.value.value) == (code, field, value)
    assert "space.yaml" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("data.style: 3", "space-form"),
        ("3: {value: 3, why: x}", "space-form"),
        ("[data.style]", "space-form"),
        ("", "space-form"),
        ("{", "not-yaml"),
        ("data.style: {value: a, why: x}\ndata.style: {value: b, why: x}", "not-yaml"),
        ("data.style: {value: a, why: x, why: y}", "not-yaml"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, text: str, code: str) -> None:
    space = write(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        tune_spaces.load([space])
    assert (refusal.value.code, refusal.value.field, refusal.value.value) == (code, "--space", space)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("model.bank.size: {kind: int, lo: 4, high: 8, why: x}", "did you mean low"),
        ("optim.lr: {kind: float, low: 1e-5, high: 1.0, why: x}", "1.0e-5"),
        ("data.style: {value: a, why: x, why: y}", "why occurs twice"),
    ],
)
def test_a_refusal_hints_at_the_mend(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        tune_spaces.load([write(tmp_path, text)])


def test_what_an_entry_becomes(tmp_path: Path) -> None:
    parameters = tune_spaces.load(
        [
            write(
                tmp_path,
                """
                optim.lr: &rate {kind: float, low: 1, high: 2, why: some reason}
                optim.clip: {<<: *rate, high: 4, step: 0.3}
                optim.betas: {kind: categorical, choices: [[0.9, 0.98], [0.5, 0.999]], why: x}
                train.epochs: {value: 3, why: x}
                """,
            )
        ]
    )
    rate, clip, betas, epochs = parameters
    assert (rate.low, rate.high, type(rate.low), rate.why) == (1.0, 2.0, float, "some reason")
    assert (clip.low, clip.high, clip.step) == (1.0, 4.0, 0.3)
    assert clip.takes(1.9)
    assert not clip.takes(2.0)
    assert betas.choices == ("[0.9, 0.98]", "[0.5, 0.999]")  # one text each, for samplers and tables
    assert betas.takes([0.5, 0.999])
    assert (epochs.kind, epochs.choices, epochs.ends) == ("fixed", (3,), (3,))


def test_what_cannot_be_found_or_read(tmp_path: Path) -> None:
    missing, latin = str(tmp_path / "missing.yaml"), str(tmp_path / "latin.yaml")
    Path(latin).write_bytes("data.style: {value: a, why: Größe}".encode("latin-1"))
    for space, code in (("cmkj", "unknown-space"), (missing, "unreadable-space"), (latin, "not-utf8")):
        with pytest.raises(UserError) as refusal:
            tune_spaces.load([space])
        assert (refusal.value.code, refusal.value.value) == (code, space)
    with pytest.raises(UserError) as refusal:
        tune_spaces.load([])
    assert refusal.value.code == "no-spaces"


def test_a_field_in_two_spaces(tmp_path: Path) -> None:
    fixed = write(tmp_path, "model.bank.size: {value: 64, why: x}")
    for spaces, code in (
        (["cmki", "cmki-small"], "field-twice"),
        (["cmki", fixed], "fixed-and-searched"),
        ([fixed, "cmki"], "fixed-and-searched"),
    ):
        with pytest.raises(UserError) as refusal:
            tune_spaces.load(spaces)
        assert (refusal.value.code, refusal.value.field) == (code, "model.bank.size")
        assert all(space in str(refusal.value) for space in spaces)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model.bank.sise: {kind: int, low: 8, high: 16, why: x}", r"did you mean model\.bank\.size"),
        ("bank.size: {kind: int, low: 8, high: 16, why: x}", r"no field of the configuration \(did you mean"),
        ("model.bank: {value: 3, why: x}", r"model\.bank in search space .* is no field"),
        ("model.bank.size.x: {value: 3, why: x}", "is no field"),
        ("optim.lr: {kind: float, low: -1, high: 1, why: x}", r"optim\.lr=-1\.0: Input should be greater than 0"),
        ("train.epochs: {kind: int, low: 0, high: 4, why: x}", r"train\.epochs=0"),
        ("train.epochs: {kind: float, low: 1, high: 4.5, why: x}", r"train\.epochs=4\.5"),
        ("optim.name: {kind: categorical, choices: [adam, sgd], why: x}", r"optim\.name=sgd"),
        ("optim.name: {value: sgd, why: x}", r"optim\.name=sgd"),
        ("optim.betas: {kind: categorical, choices: [[0.9, 0.98], [0.9]], why: x}", r"optim\.betas=\[0\.9\]"),
        ("optim.betas: {kind: categorical, choices: ['[0.9'], why: x}", r"optim\.betas=\[0\.9"),
        # Each is valid alone over the base, which has the other.
        (
            "loss.plain: {kind: float, low: 0, high: 1, why: x}\nloss.bridged: {kind: float, low: 0, high: 1, why: x}",
            r"at loss\.plain=0\.0, loss\.bridged=0\.0: .*both 0",
        ),
        # The child's end is invalid in one branch of its parent only.
        (
            "model.vision.name: {kind: categorical, choices: [resnet10, cnn3d, vit3d], why: x}\n"
            "model.vision.volume: {value: [64, 64, 32], why: x}\n"
            "model.vision.heads: {value: 4, why: x}\n"
            "model.vision.width: {kind: int, low: 16, high: 18, why: x}",
            r"at model\.vision\.name=vit3d.*model\.vision\.width=18: vision\.width 18 is not a multiple",
        ),
    ],
)
def test_a_space_that_the_configuration_does_not_take(tmp_path: Path, text: str, says: str) -> None:
    parameters = tune_spaces.load([write(tmp_path, text)])
    with pytest.raises(UserError, match=says) as refusal:
        check_space(parameters, load_config("demo"))
    assert "space.yaml" in str(refusal.value)


def test_values_that_are_valid_only_together_pass(tmp_path: Path) -> None:
    # Patches of 16 do not divide the demo's volume, nor 12 heads its width: valid because the space sets all of them at once.
    space = write(
        tmp_path,
        """
        model.vision.heads: {kind: categorical, choices: [2, 4], when: {model.vision.name: vit3d}, why: x}
        model.vision.patch: {value: [10, 10, 5], when: {model.vision.name: vit3d}, why: x}
        model.vision.name: {kind: categorical, choices: [cnn3d, vit3d], why: x}
        """,
    )
    check_space(tune_spaces.load([space]), load_config("demo"))
    with pytest.raises(UserError, match=r"model\.vision\.name=vit3d"):
        check_space(tune_spaces.load(["towers"]), load_config("demo"))


def test_drawn_values_reach_the_configuration() -> None:
    config = drawn_config(
        load_config("demo"), {"optim.betas": "[0.9, 0.999]", "model.bank.size": 32, "data.sentences": None}
    )
    assert (config.optim.betas, config.model.bank.size, config.data.sentences) == ((0.9, 0.999), 32, None)
    assert config.optim.lr == load_config("demo").optim.lr
    with pytest.raises(UserError, match=r"Unknown key model\.bank\.sise"):
        drawn_config(RunConfig(), {"model.bank.sise": 4})


def test_the_page_tells_every_shipped_field_as_its_file_has_it() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| `([\w.]+)` \| (.+?) \| (.*?) \| (.+) \|$", (ROOT / "docs/spaces.md").read_text(), re.M
    )
    told = {(space, field): (values, when, why) for space, field, values, when, why in rows}
    shipped = {
        (p.space, p.field): (values(p), when(p), p.why) for s in tune_spaces.names() for p in tune_spaces.load([s])
    }
    assert told == shipped
    assert len(rows) == len(told)
    assert {field for _, field in told} <= set(field_names())


def test_the_pages_example_is_a_space(tmp_path: Path) -> None:
    example = (ROOT / "docs/spaces.md").read_text().split("```yaml\n")[1].split("```")[0]
    parameters = tune_spaces.load([write(tmp_path, example)])
    assert {p.kind for p in parameters} == {"int", "float", "categorical", "fixed"}
    for preset in ("demo", "paper"):
        check_space(parameters, load_config(preset))


def values(parameter: tune_spaces.Parameter) -> str:
    """A parameter's values as docs/spaces.md prints them."""
    if parameter.kind == "fixed":
        return f"fixed: {shown(parameter.choices[0])}"
    if parameter.choices:
        return ", ".join(map(shown, parameter.choices))
    scale = ", log" if parameter.log else f", step {parameter.step}" if parameter.step else ""
    return f"{parameter.low:g} to {parameter.high:g}, {parameter.kind}{scale}"


def when(parameter: tune_spaces.Parameter) -> str:
    return "; ".join(f"{field}: {', '.join(map(shown, values))}" for field, values in parameter.when.items())


def shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
