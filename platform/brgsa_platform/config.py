"""One typed, validated run configuration: preset YAML, then a file of the user's, then `section.key=value`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from brgsa.config import LossConfig, ModelConfig
from brgsa.errors import UserError, nearest

Beta = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformSpec(BaseModel):
    """One of MONAI's array transforms: its name, and its arguments beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class DataSection(Section):
    """What a training batch is made of. The crop is `model.vision.volume`: random in training, centred in evaluation.

    Attributes:
        style: summary style whose text stands beside the volume; "report" is the report as written.
        shuffle_sentences: put a text's sentences in a new order each epoch.
        sentences: each epoch's text is a random 1 to this many of the sentences; empty: all of them. A text of one
            sentence has the form of a zero-shot prompt, which a small archive needs to learn from.
        flip: chances of a flip along x (left-right), y and z; one number is x alone.
        rotate: chance of 1 to 3 quarter turns in plane; the crop must be square there.
        transforms: MONAI transforms by name with their arguments, on float HU (1, x, y, z), one after the other.
        scale: intensities are multiplied by 1 + a number from ±scale, one a volume (training device, as are the next two).
        shift: HU added are from ±shift, one number a volume.
        noise: standard deviation in HU of Gaussian noise.
        shuffle_buffer: volumes mixed at a time; a split that fits is permuted as a whole.
        loader: what reads, crops and augments volumes: "ray", tasks of Ray Data on the nodes for data; or "torch", processes
            of a DataLoader on each training worker's own node. The batches are the same.
        cpus: CPUs of data tasks, or processes of DataLoaders, all training workers together; empty: all that training leaves
            free, or a worker's threads less one.
        object_store_share: share of the object store that batches on their way may fill, all training workers together.
    """

    style: str = "positives"
    shuffle_sentences: bool = True
    sentences: int | None = Field(None, ge=1)
    flip: tuple[Chance, Chance, Chance] = (0.0, 0.0, 0.0)
    rotate: Chance = 0.0
    transforms: tuple[TransformSpec, ...] = ()
    scale: float = Field(0.0, ge=0, lt=1)
    shift: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)
    shuffle_buffer: int = Field(4096, ge=1)
    loader: Literal["ray", "torch"] = "ray"
    cpus: float | None = Field(None, gt=0)
    object_store_share: float = Field(0.5, gt=0, le=1)

    @field_validator("flip", mode="before")
    @classmethod
    def _left_right(cls, value: Any) -> Any:
        return (value, 0.0, 0.0) if isinstance(value, int | float) else value


class OptimSection(Section):
    """Optimiser and schedule; the defaults are the reference's.

    Attributes:
        schedule: "plateau" halves the rate after `patience` epochs without a better validation loss; "cosine" falls to 0
            over the epochs; "constant".
        warmup_steps: steps over which the rate rises linearly from 0.
        clip: largest norm of the gradient.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = Field(5e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    patience: int = Field(5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    clip: float = Field(0.25, gt=0)


class TrainSection(Section):
    """How long, how wide and how safe.

    Attributes:
        batch_size: volumes a step over all workers together; InfoNCE sees them all.
        workers: training workers; 0 trains in the calling process (searches use it).
        gpu: a GPU for each worker; "auto" when the cluster has them.
        precision: "16" and "bf16" are autocast on a GPU; a CPU trains in "32".
        threads: CPU threads of a worker; default all of the machine's, shared among its workers.
        keep: best checkpoints kept, beside the last.
        checkpoint_minutes: longest time between two checkpoints; within an epoch there is one only, the last.
        max_failures: restarts after a lost worker before the run fails.
    """

    epochs: int = Field(39, ge=1)
    batch_size: int = Field(64, ge=2)
    workers: int = Field(1, ge=0)
    gpu: bool | Literal["auto"] = "auto"
    precision: Literal["32", "16", "bf16"] = "16"
    threads: int | None = Field(None, ge=1)
    seed: int = 0
    keep: int = Field(1, ge=1)
    checkpoint_minutes: float = Field(10.0, gt=0)
    max_failures: int = Field(2, ge=0)

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainSection:
        if self.batch_size % max(self.workers, 1):
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value)  # YAML reads 16 as a number


class RunConfig(Section):
    """Everything that makes two trainings on the same store the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="after")
    def _turns_fit(self) -> RunConfig:
        x, y, _ = self.model.vision.volume
        if self.data.rotate and x != y:
            raise ValueError(
                f"data.rotate needs a crop that is square in plane and model.vision.volume is {x}×{y} there: set "
                "data.rotate=0 or make it square"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able tree that `from_tree` takes back unchanged."""
        tree: dict[str, Any] = json.loads(self.model_dump_json())
        return tree

    @classmethod
    def from_tree(cls, tree: dict[str, Any], where: str = "the configuration") -> RunConfig:
        """Validate a tree of sections.

        Raises:
            UserError: unknown key (with the nearest name) or impossible value; names `where` it stands.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(_explain(error, where)) from error


def preset_names() -> list[str]:
    """Names that `--preset` takes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
) -> RunConfig:
    """The run configuration from, in this order: preset (name, or path of a YAML file), `file`, `section.key=value`.

    Args:
        base: a tree to start from instead of the defaults (a search starts from its preset's).
    """
    tree: dict[str, Any] = base or {}
    sources = []
    if preset is not None:
        tree = merge(tree, read_preset(preset))
        sources.append(f"preset {preset}")
    if file is not None:
        tree = merge(tree, _read_yaml(file))
        sources.append(str(file))
    if overrides:
        tree = merge(tree, parse_overrides(overrides))
        sources.append("the command line")
    return RunConfig.from_tree(tree, " + ".join(sources) or "the configuration")


def read_preset(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset's tree laid over the one that it `extends`: a preset's name, or a file beside its own.

    Args:
        below: presets that led here; one of them again would go round in a circle.
    """
    if name in below:
        raise UserError(f"Preset {name} extends itself ({' → '.join([*below, name])}): remove one `extends`.")
    entry = _presets() / f"{name}.yaml"
    if entry.is_file():
        tree = _read_yaml(Path(str(entry)))
    elif name.endswith((".yaml", ".yml")):
        tree = _read_yaml(Path(name))
    else:
        raise UserError(f"There is no preset {name!r}{nearest(name, preset_names())}: {', '.join(preset_names())}.")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UserError(f"extends in preset {name} must be the name of one preset, not {parent!r}.")
    if parent.endswith((".yaml", ".yml")):
        parent = str(Path(name).parent / parent)
    return merge(read_preset(parent, (*below, name)), tree)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3"]` → `{"optim": {"lr": …}}`; values are YAML."""
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise UserError(f"{text!r} is not of the form section.key=value.")
        try:
            branch: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"The value of {text!r} is not YAML: quote it.") from error
        for part in reversed(path):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as `{"section.key": value}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _presets() -> Any:
    return files("brgsa_platform") / "presets"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration file {path} is not YAML in UTF-8: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"The configuration file {path} holds no sections (model, loss, data, optim, train).")
    return tree


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(path[:-1])
        return f"Unknown key {'.'.join(path)} in {where}{nearest(path[-1], known)}; known here: {', '.join(known)}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)} in {where}: {message}." if path else f"In {where}: {message}."


def _known_keys(path: Sequence[str]) -> list[str]:
    node: Any = RunConfig
    for part in path:
        if is_dataclass(node):
            default = next((f.default_factory for f in fields(node) if f.name == part), None)
            node = default
        else:
            node = node.model_fields[part].annotation
    return [f.name for f in fields(node)] if is_dataclass(node) else list(node.model_fields)
