"""A protocol as typed values, and its YAML: every key known, every value possible, or it is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from brgsa.errors import UserError, nearest
from brgsa.metrics import Drawing, IntervalRule
from brgsa.metrics.arrays import Floats
from brgsa.protocols.prompts import TEMPLATE, prompts

FOLDER = Path(__file__).parent
DEFAULT = "honest"
SHIPPED = ("honest", "brgsa-paper", "ct-clip", "radfinder-mean7", "scan")

CHOICES: Mapping[str, tuple[str, ...]] = {
    "unit": ("volume", "scan", "smallest-voxel", "patient"),
    "threshold": ("validation", "test"),
    "value": ("all-volumes", "mean-of-draws"),
    "overall": ("interval-of-mean", "mean-of-intervals"),
    "prompts.ensemble": ("embeddings", "scores"),
    "bootstrap.unit": ("volume", "scan", "patient"),
    "bootstrap.seeds": ("one", "each-draw"),
    "bootstrap.without_positive": ("leave-out", "zero"),
}


@dataclass(frozen=True)
class Prompts:
    """What is asked of a text tower.

    Attributes:
        templates: sentences with the field {abnormality}; the score is over all of them.
        contrast: as many sentences for the absence; the score is then a softmax over each pair.
        synonyms: abnormality → other names for it, each put into every template as well.
        ensemble: whether several prompts are averaged as normalised "embeddings" or as "scores".
        inverse_temperature: of the softmax over a pair.
    """

    templates: tuple[str, ...] = (TEMPLATE,)
    contrast: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensemble: str = "embeddings"
    inverse_temperature: float = 10.0


@dataclass(frozen=True)
class BootstrapChoice:
    """How uncertainty is told.

    Attributes:
        unit: what is drawn as one: "volume", "scan" or "patient".
        resamples: number of draws.
        seeds: "one" stream for all draws, or "each-draw" its own seed, from `seed` on (see `metrics.Drawing`).
        seed: the first.
        ddof: divisor of the standard deviation is R - ddof.
        without_positive: a draw without a positive is left out ("leave-out"), or counts as in the published code ("zero").
    """

    unit: str = "scan"
    resamples: int = 5000
    seeds: str = "one"
    seed: int = 0
    ddof: int = 0
    without_positive: str = "leave-out"


@dataclass(frozen=True)
class Protocol:
    """What is measured and how.

    Attributes:
        name: of the file, without its suffix.
        about: one sentence for a reader.
        unit: what counts as one observation: a "volume"; a "scan", whose score is the mean over its reconstructions; a scan by
            its reconstruction of the "smallest-voxel"; a "patient", by the mean over all of his or hers.
        prompts: what is asked of a model.
        max_of: label → the labels of whose prompts' scores it takes the larger.
        threshold: chosen on the "validation" split, or on the very labels under "test".
        value: a figure on "all-volumes", or the "mean-of-draws".
        overall: of several abnormalities the "interval-of-mean", or the "mean-of-intervals".
        bootstrap: how volumes are drawn.
    """

    name: str = DEFAULT
    about: str = ""
    unit: str = "volume"
    prompts: Prompts = field(default_factory=Prompts)
    max_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    threshold: str = "validation"
    value: str = "all-volumes"
    overall: str = "interval-of-mean"
    bootstrap: BootstrapChoice = field(default_factory=BootstrapChoice)

    def __post_init__(self) -> None:
        """Raises UserError: a value is impossible ("protocol-value", `field` is its key)."""
        for key, choices in CHOICES.items():
            value: Any = self
            for part in key.split("."):
                value = getattr(value, part)
            if value not in choices:
                raise _wrong(
                    key, value, f"must be one of {', '.join(choices)}{nearest(str(value), choices)}", self.name
                )
        asked, drawn = self.prompts, self.bootstrap
        if not asked.templates:
            raise _wrong("prompts.templates", asked.templates, "must hold a template", self.name)
        if asked.contrast and len(asked.contrast) != len(asked.templates):
            raise _wrong("prompts.contrast", asked.contrast, "must hold as many as prompts.templates", self.name)
        for template in (*asked.templates, *asked.contrast):
            prompts([], template)
        if not asked.inverse_temperature > 0:
            raise _wrong("prompts.inverse_temperature", asked.inverse_temperature, "must be above 0", self.name)
        for key, number, least in (
            ("resamples", drawn.resamples, 1),
            ("seed", drawn.seed, 0),
            ("ddof", drawn.ddof, 0),
        ):
            if number < least:
                raise _wrong(f"bootstrap.{key}", number, f"must be at least {least}", self.name)

    @property
    def drawing(self) -> Drawing:
        """How volumes are drawn."""
        return Drawing(self.bootstrap.resamples, self.bootstrap.seed, self.bootstrap.seeds == "each-draw")

    @property
    def rule(self) -> IntervalRule:
        """What is made of the draws."""
        return IntervalRule(
            of_draws=self.value == "mean-of-draws",
            ddof=self.bootstrap.ddof,
            without_positive_zero=self.bootstrap.without_positive == "zero",
            mean_of_intervals=self.overall == "mean-of-intervals",
        )

    def asked(self, names: Sequence[str]) -> list[str]:
        """The labels for which a model is asked, each once, so that these labels have scores."""
        return list(dict.fromkeys(part for name in names for part in self.max_of.get(name, (name,))))

    def combined(self, names: Sequence[str], scored: Sequence[str], scores: Floats) -> Floats:
        """The scores (N, P) of these labels from those (N, Q) for which there are scores.

        A label of `max_of` whose parts are not all scored has a score of its own.
        """
        place = {name: i for i, name in enumerate(scored)}
        columns = []
        for name in names:
            parts = self.max_of.get(name, ())
            whole = parts and all(part in place for part in parts)
            columns.append(scores[:, [place[part] for part in (parts if whole else (name,))]].max(axis=1))
        return np.stack(columns, axis=1) if columns else np.empty((len(scores), 0))

    def can_score(self, name: str, scored: Collection[str]) -> bool:
        """Whether a label has scores, its own or those of its parts."""
        parts = self.max_of.get(name, ())
        return name in scored or (bool(parts) and all(part in scored for part in parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what a file of this protocol holds, and its name."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], name: str, where: Path) -> Protocol:
        """The protocol of this name that a file at `where` holds; see `load_protocol` for what is refused."""
        _check_keys(tree, cls, "", where)
        sections = {"prompts": Prompts, "bootstrap": BootstrapChoice}
        made = {key: _value(key, tree[key], where) for key in tree if key not in sections}
        for section, kind in sections.items():
            branch = tree.get(section, {})
            if not isinstance(branch, dict):
                raise _wrong(section, branch, "must hold keys", str(where))
            _check_keys(branch, kind, f"{section}.", where)
            made[section] = kind(**{key: _value(f"{section}.{key}", value, where) for key, value in branch.items()})
        return cls(**made | {"name": name})


def load_protocol(name: str | Path | Protocol = DEFAULT) -> Protocol:
    """A protocol by its name, or from a YAML file by its path.

    Raises:
        UserError: "unknown-protocol"; "unreadable-protocol"; "unknown-key" (`field` is the key as section.key); or
            "protocol-value" (likewise).
    """
    if isinstance(name, Protocol):
        return name
    text = str(name)
    if text in SHIPPED:
        return _read(FOLDER / f"{text}.yaml")
    if isinstance(name, Path) or text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return _read(Path(text))
    raise UserError(
        f"Unknown protocol {text!r}{nearest(text, SHIPPED)}: choose one of {', '.join(SHIPPED)}, or give the path of a YAML "
        "file.",
        code="unknown-protocol",
        field="protocol",
        value=text,
    )


def _read(path: Path) -> Protocol:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The protocol {path} cannot be read ({reason}): mend it, or choose one of {', '.join(SHIPPED)}.",
            code="unreadable-protocol",
            field="protocol",
            value=str(path),
        ) from error
    return Protocol.from_dict(tree, path.stem, path)


def _check_keys(tree: Mapping[Any, Any], kind: type, prefix: str, path: Path) -> None:
    known = [one.name for one in fields(kind) if prefix or one.name != "name"]
    for key in tree:
        if key not in known:
            near = nearest(str(key), known)
            raise UserError(
                f"The protocol {path} has an unknown key {prefix}{key}{near}: known are {', '.join(known)}.",
                code="unknown-key",
                field=f"{prefix}{key}",
                value=str(path),
            )


def _value(key: str, value: Any, path: Path) -> Any:
    """A value of the YAML as the protocol holds it, refused where it is of another type."""
    if key in ("prompts.templates", "prompts.contrast"):
        return _texts(key, value, path)
    if key in ("prompts.synonyms", "max_of"):
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise _wrong(key, value, "must give names for each abnormality", str(path))
        return {name: _texts(f"{key}.{name}", names, path) for name, names in value.items()}
    whole = isinstance(value, int) and not isinstance(value, bool)
    if key in ("bootstrap.resamples", "bootstrap.seed", "bootstrap.ddof"):
        if not whole:
            raise _wrong(key, value, "must be a whole number", str(path))
    elif key == "prompts.inverse_temperature":
        if not whole and not isinstance(value, float):
            raise _wrong(key, value, "must be a number", str(path))
        return float(value)
    elif not isinstance(value, str):
        raise _wrong(key, value, "must be a text", str(path))
    return value


def _texts(key: str, value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong(key, value, "must be a list of texts", str(path))
    return tuple(value)


def _wrong(key: str, value: object, must: str, where: str) -> UserError:
    return UserError(
        f"In the protocol {where}, {key} {must}, not {value!r}.", code="protocol-value", field=key, value=value
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value
