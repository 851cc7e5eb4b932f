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

from brgsa.config import Lock, LossConfig, ModelConfig
from brgsa.errors import UserError, nearest

Beta = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy, PyTorch and MONAI all take these


class Section(BaseModel):
    """A part of the configuration: unknown keys, infinities and NaN are refused, and a value that is set stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TransformSpec(BaseModel):
    """One of MONAI's array transforms, by its name; its arguments stand beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class DataSection(Section):
    """What a training batch is made of. The crop is `model.vision.volume`, placed at random.

    Attributes:
        style: the summary style whose text is paired with the volume, by its column in the store or its YAML file; "report"
            is the report as written.
        unit: what an epoch has one item of: each "volume"; each "scan", or each "text", which is a distinct report, and of
            these one reconstruction, drawn anew each epoch.
        distinct_texts: two items with equal texts, or of equal reports, never stand in one batch; two of a scan never do.
        shuffle_sentences: put a text's sentences in a new order each epoch.
        sentences: each epoch draws so many of a text's sentences; empty: all of them. A text of one sentence has the form of
            a zero-shot prompt, which a small archive needs to learn from.
        drawn: "exactly" draws `sentences` of them, or all of a shorter text; "up_to" draws 1 to `sentences`.
        unseen: abnormalities of which no text of the training says anything, as far as the rule reader knows their names:
            sentences that name one are left out, and so are volumes of whose text nothing is left.
        flip: the chances of a flip along x (left-right), y and z; a single number is the chance along x.
        rotate: the chance of 1 to 3 quarter turns in plane; the crop must be square there.
        transforms: MONAI transforms by name with their arguments, applied in this order to float HU (1, x, y, z).
        scale: intensities are multiplied by 1 + a number from ±scale, drawn for each volume on the training device, as
            are the next two.
        shift: the number from ±shift that is added to a volume's HU.
        noise: the standard deviation of Gaussian noise, in HU.
        shuffle_buffer: the number of volumes that are shuffled together; a smaller split is permuted as a whole.
        loader: what reads, crops and augments volumes: "ray", tasks of Ray Data on the nodes for data; or "torch", processes
            of a DataLoader on each training worker's own node. The batches are the same.
        cpus: CPUs of the data tasks, or processes of the DataLoaders, of all training workers together; empty: all that
            training leaves free, or a worker's threads less one.
        object_store_share: the share of Ray's object store that the batches of all training workers may fill.
    """

    style: str = "positives"
    unit: Literal["volume", "scan", "text"] = "text"
    distinct_texts: bool = True
    shuffle_sentences: bool = True
    sentences: int | None = Field(None, ge=1)
    drawn: Literal["exactly", "up_to"] = "exactly"
    unseen: tuple[str, ...] = ()
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

    @field_validator("style", mode="before")
    @classmethod
    def _column(cls, value: Any) -> Any:
        """The style's column in a store: a style of the user's own is given by its file."""
        from brgsa.summaries.styles.style import is_file, load_style

        return load_style(value).key if isinstance(value, str) and is_file(value) else value

    @field_validator("flip", mode="before")
    @classmethod
    def _left_right(cls, value: Any) -> Any:
        return (value, 0.0, 0.0) if isinstance(value, int | float) else value


class RatesSection(Section):
    """Learning rates of the model's parts, as shares of `optim.lr`."""

    vision: float = Field(1.0, gt=0)
    text: float = Field(1.0, gt=0)
    projections: float = Field(1.0, gt=0)
    bank: float = Field(1.0, gt=0)


class OptimSection(Section):
    """Optimiser and schedule; the defaults are the reference's.

    Attributes:
        lr: the learning rate, after the warm-up.
        weight_decay: of matrices and kernels; norms, biases and tables (positions, words) have none.
        lock: towers that do not learn: "vision", "text"; "vision:2" is all of it but its last 2 blocks.
        rates: learning rates of the parts, as shares of `lr`.
        schedule: "plateau" halves the rate after `patience` epochs without a better validation loss; "cosine" lowers it
            to 0 over the epochs; "constant" keeps it.
        warmup_steps: the steps over which the rate rises linearly from 0.
        clip: the largest norm of the gradient; a larger gradient is scaled down to it.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = Field(5e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    patience: int = Field(5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    clip: float = Field(0.25, gt=0)
    lock: tuple[str, ...] = ()
    rates: RatesSection = RatesSection()

    @field_validator("lock")
    @classmethod
    def _towers_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        towers = [Lock.parse(text).tower for text in value]
        if len(set(towers)) < len(towers):
            raise ValueError(f"{', '.join(value)} locks a tower twice: name each once")
        return value

    @property
    def locks(self) -> list[Lock]:
        """`lock`, read."""
        return [Lock.parse(text) for text in self.lock]


class TrainSection(Section):
    """How long a training runs, on what, and how it survives failures.

    Attributes:
        batch_size: volumes a step, over all workers together; InfoNCE compares them all.
        workers: the number of training workers; 0 trains in the calling process, as searches do. [fewest, most]: as many as
            the cluster has room for, of the numbers that divide the batch; it goes on with others where that changes.
        gpu: whether each worker has a GPU; "auto": if the cluster has enough.
        precision: "16" and "bf16" are autocast on a GPU; "auto" is "bf16" on a GPU that has it, else "16". A CPU trains in
            "32".
        micro_batch: volumes that a worker encodes at once, for the loss over the whole batch in less memory and a third more
            time; empty: its whole part of the batch.
        checkpoint_activations: for the ViT alone: compute each block twice instead of keeping what it computes.
        compile: compile the vision tower (torch.compile), where there is a C compiler.
        parallel: "ddp" keeps a copy of weights and optimiser on each worker; "fsdp" shares them out among the workers, for
            towers beyond ViT-B.
        log_every: steps between two readings of the losses, for which the device must be waited for. A loss that is no
            number is noticed then, and before anything is saved.
        threads: CPU threads of a worker; empty: its machine's, shared among the workers there.
        seed: of weights, order, texts and augmentation.
        select: what makes an epoch's checkpoint the best: the lowest validation "loss", or the highest validation "auroc".
            Without a validation split the training loss does.
        stop_after: the training ends when so many epochs in a row were no better; empty: it never ends early.
        keep: the number of best checkpoints that are kept, beside the last one.
        checkpoint_minutes: the longest time between two checkpoints; within an epoch only the last one is kept.
        max_failures: how often a lost worker is replaced before the run fails. A preemption that was announced does not count.
        system_metrics: log what CPUs, memory, network and GPUs of each training node do, where psutil is installed.
    """

    epochs: int = Field(39, ge=1)
    batch_size: int = Field(64, ge=2)
    workers: int | tuple[int, int] = 1
    gpu: Literal[True, False, "auto"] = "auto"
    precision: Literal["auto", "32", "16", "bf16"] = "auto"
    micro_batch: int | None = Field(None, ge=1)
    checkpoint_activations: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    log_every: int = Field(10, ge=1)
    threads: int | None = Field(None, ge=1)
    seed: Seed = 0
    select: Literal["loss", "auroc"] = "loss"
    stop_after: int | None = Field(10, ge=1)
    keep: int = Field(1, ge=1)
    checkpoint_minutes: float = Field(10.0, gt=0)
    max_failures: int = Field(2, ge=0)
    system_metrics: bool = True

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_or_a_range(cls, value: Any) -> Any:
        ends = value if isinstance(value, list | tuple) else [value]
        if len(ends) > 2 or not ends or not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
            raise ValueError("it must be a whole number, or [fewest, most]")
        if ends[0] < (0 if len(ends) == 1 else 1):
            raise ValueError("it must be 0 or more, and a range must begin with 1 or more")
        if ends[0] > ends[-1]:
            raise ValueError(f"[fewest, most] needs the smaller number first: [{ends[1]}, {ends[0]}]")
        return value

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainSection:
        for workers in (self.workers,) if isinstance(self.workers, int) else self.workers:
            if self.batch_size % max(workers, 1):
                raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {workers}")
        for workers in self.worker_counts:
            part = self.batch_size // max(workers, 1)
            if part % (self.micro_batch or 1):
                raise ValueError(
                    f"micro_batch {self.micro_batch} does not divide a worker's part of the batch, {part} volumes"
                )
        return self

    @model_validator(mode="after")
    def _shards_among_workers(self) -> TrainSection:
        if self.parallel == "fsdp" and self.worker_counts[0] < 2:
            raise ValueError(
                f"parallel=fsdp needs workers of 2 or more to share out the weights, not {self.worker_counts[0]}"
            )
        if self.parallel == "fsdp" and self.precision == "16":
            raise ValueError("parallel=fsdp does not train in float16: set precision=bf16")
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that the training may have, fewest first: of a range those that divide the batch."""
        if isinstance(self.workers, int):
            return (self.workers,)
        fewest, most = self.workers
        return tuple(count for count in range(fewest, most + 1) if self.batch_size % count == 0)

    @property
    def local_batch(self) -> int:
        """Volumes of a step on each worker, where they are fewest."""
        return self.batch_size // max(self.worker_counts[0], 1)

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value)  # YAML reads 16 as a number


class RunConfig(Section):
    """All settings of a training; two trainings with the same ones on the same store give the same model."""

    model_config = ConfigDict(protected_namespaces=())  # it has a field `model`

    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="after")
    def _unseen_is_not_supervised(self) -> RunConfig:
        if self.data.unseen and self.loss.supervised:
            supervised = self.loss.abnormalities
            both = [name for name in self.data.unseen if not supervised or name in supervised]
            if both:
                raise ValueError(
                    f"data.unseen and loss.abnormalities both name {both[0]}: no label may tell of what is unseen"
                )
        return self

    @model_validator(mode="after")
    def _turns_fit(self) -> RunConfig:
        x, y, _ = self.model.vision.volume
        if self.data.rotate and x != y:
            raise ValueError(
                f"data.rotate needs a crop that is square in plane and model.vision.volume is {x}×{y} there: set "
                "data.rotate=0 or make it square"
            )
        return self

    @model_validator(mode="after")
    def _blocks_exist(self) -> RunConfig:
        vision, text = self.model.vision, self.model.text
        known = {"vision": vision.depth if vision.name == "vit3d" else 0}
        if text.name == "small":
            known["text"] = text.depth
        for lock in self.optim.locks:
            if lock.tower in known:
                try:
                    lock.check(known[lock.tower])
                except ValueError as error:
                    raise ValueError(f"optim.lock: {error}") from error
        return self

    @model_validator(mode="after")
    def _tower_allows(self) -> RunConfig:
        vision, train = self.model.vision, self.train
        if train.checkpoint_activations and vision.name != "vit3d":
            raise ValueError(
                f"train.checkpoint_activations needs model.vision.name=vit3d: {vision.name} has no blocks; train.micro_batch "
                "saves memory with every tower"
            )
        if train.micro_batch and vision.name != "vit3d" and vision.norm == "batch":
            raise ValueError(
                "train.micro_batch needs model.vision.norm=group: batch norm would see a micro batch, and the loss would "
                "not be the whole batch's"
            )
        if train.parallel == "fsdp" and vision.name == "cnn3d":
            raise ValueError(
                "train.parallel=fsdp cannot share out the weights of model.vision.name=cnn3d: set train.parallel=ddp"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """A tree of JSON values, which `from_tree` reads back unchanged."""
        tree: dict[str, Any] = json.loads(self.model_dump_json())
        return tree

    @classmethod
    def from_tree(cls, tree: dict[str, Any], where: str = "the configuration") -> RunConfig:
        """Validate a tree of sections.

        Args:
            where: where the tree comes from, for messages.

        Raises:
            UserError: an unknown key ("unknown-key", with the nearest name) or an impossible value ("impossible-value");
                `field` and `value` are those of the first one.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _refusal(error, where) from error


def preset_names() -> list[str]:
    """The names that `--preset` takes, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
) -> RunConfig:
    """The run configuration from a preset, a file and overrides; each wins over those before it.

    Args:
        preset: a preset's name, or the path of a YAML file that may extend one.
        file: a YAML file with some sections.
        overrides: texts `section.key=value`.
        base: a tree to start from instead of the defaults; a search starts from its preset's.

    Raises:
        UserError: see `read_preset`, `parse_overrides` and `RunConfig.from_tree`.
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
    """A preset's tree, laid over the tree of the preset or file that it `extends`.

    Args:
        name: a preset's name, or the path of a YAML file; in `extends` a path starts from the extending file's folder.
        below: the presets that led here.

    Raises:
        UserError: there is no such preset ("no-preset"), a file cannot be read ("unreadable-config"), or its `extends` is
            no name or leads back to itself ("bad-extends").
    """
    if name in below:
        raise UserError(
            f"Preset {name} extends itself ({' → '.join([*below, name])}): remove one `extends`.",
            code="bad-extends",
            field=name,
        )
    entry = _presets() / f"{name}.yaml"
    if entry.is_file():
        tree = _read_yaml(Path(str(entry)))
    elif name.endswith((".yaml", ".yml")):
        tree = _read_yaml(Path(name))
    else:
        raise UserError(
            f"There is no preset {name!r}{nearest(name, preset_names())}: {', '.join(preset_names())}.",
            code="no-preset",
            value=name,
        )
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        message = f"extends in preset {name} must be the name of one preset, not {parent!r}."
        raise UserError(message, code="bad-extends", field=name)
    if parent.endswith((".yaml", ".yml")):
        parent = str(Path(name).parent / parent)
    return merge(read_preset(parent, (*below, name)), tree)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """The tree that texts `section.key=value` make, such as `{"optim": {"lr": …}}` of "optim.lr=1e-3"; values are YAML.

    Raises:
        UserError: a text has another form, or its value is not YAML ("bad-override").
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise UserError(f"{text!r} is not of the form section.key=value.", code="bad-override", value=text)
        try:
            branch: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            message = f"The value of {text!r} is not YAML: quote it."
            raise UserError(message, code="bad-override", value=text) from error
        for part in reversed(path):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two trees as one: where both have a value, the one of `above` wins. Neither is changed."""
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
        raise _unreadable(path, f"cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"is not YAML in UTF-8: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise _unreadable(path, "holds no sections (model, loss, data, optim, train)")
    return tree


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"The configuration file {path} {why}.", code="unreadable-config", field=str(path))


def _refusal(error: ValidationError, where: str) -> UserError:
    """What pydantic found first, in a sentence."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(path[:-1])
        message = f"Unknown key {field} in {where}{nearest(path[-1], known)}; known here: {', '.join(known)}."
        return UserError(message, code="unknown-key", field=field)
    value = (
        first["input"] if isinstance(first["input"], bool | int | float | str | list | tuple) else None
    )  # a section can be anything
    message = first["msg"].removeprefix("Value error, ")
    message = f"{field} in {where}: {message}." if path else f"In {where}: {message}."
    return UserError(message, code="impossible-value", field=field, value=value)


def _known_keys(path: Sequence[str]) -> list[str]:
    """The keys of the section at a path; sections are pydantic models, or `brgsa.config`'s dataclasses."""
    node: Any = RunConfig
    for part in path:
        if is_dataclass(node):
            node = next((field.default_factory for field in fields(node) if field.name == part), None)
        else:
            node = node.model_fields[part].annotation
    return [field.name for field in fields(node)] if is_dataclass(node) else list(node.model_fields)
