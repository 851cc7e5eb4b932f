"""A summary style as data: the YAML files beside this module, and a user's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from brgsa.errors import UserError, nearest
from brgsa.summaries.hierarchy import canonical, known_names, named_set
from brgsa.summaries.reader import Status

SHIPPED: tuple[str, ...] = (
    "report",
    "findings",
    "impression",
    "positives",
    "positives+negatives",
    "by-anatomy",
    "short",
)
FORMS = ("report", "sentences", "impression", "statements", "anatomy", "line")
BACKENDS = ("rules", "openai", "transformers", "hybrid", "ray-llm")
PARENTS = ("keep", "drop")
SUFFIXES = (".yaml", ".yml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_.-]{0,40}")


@dataclass(frozen=True)
class Style:
    """How a summary is written.

    Attributes:
        name: of its column in a store; see `key`.
        version: raised by hand where its meaning changes.
        form: what is written: "report" (as it is), "sentences" (those that assert an abnormality), "impression" (its sentences;
            those of the whole report where it has none), "statements" (one for each abnormality), "anatomy" (one sentence for
            each place), "line" (all in one sentence: "Cardiomegaly; lung nodule.").
        say: the statuses that statements speak of, in this order: "present", "absent", "uncertain".
        names: the abnormalities that the rules look for, in the order in which they are written.
        parents: "keep", or "drop" an abnormality that another one implies (hepatosplenomegaly: splenomegaly).
        most: the largest number of statements or sentences; None for all.
        backend: what reads the report, one of `BACKENDS`.
        model: of a backend that has one: its name at the endpoint, or a folder.
        instruction: what a language model is told. `{names}` in it becomes the open vocabulary's names.
        closed: a language model gives its verdict on each of `names` and names nothing else; `{names}` is these. For small
            models, and for labels.
    """

    name: str
    version: int = 1
    form: str = "statements"
    say: tuple[str, ...] = (Status.PRESENT.value,)
    names: tuple[str, ...] = ()
    parents: str = "keep"
    most: int | None = None
    backend: str = "rules"
    model: str = ""
    instruction: str = ""
    closed: bool = False

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with anything that may change a summary."""
        content = {name: value for name, value in asdict(self).items() if name != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def key(self) -> str:
        """The name of the style's column in a store: its name for a shipped style by rules, else with the hash behind it."""
        if self.name in SHIPPED and self == shipped_style(self.name):
            return self.name
        return f"{self.name}-{self.hash[:8]}"

    @property
    def is_prose(self) -> bool:
        """Whether it is written in sentences of its own, not in statements of one form."""
        return self.form in ("report", "sentences", "impression")

    def with_backend(self, backend: str | None, model: str | None) -> Style:
        """The style with another backend or model; None leaves it."""
        changed = replace(self, backend=backend or self.backend, model=self.model if model is None else model)
        _check(changed, f"style {self.name}")
        return changed


def load_style(style: str | Path | Style) -> Style:
    """A style by its shipped name, or from a YAML file of the user's.

    Raises:
        UserError: there is no such style ("unknown-style"); the file cannot be read ("style-unreadable"), has an unknown key
            ("unknown-key") or a value that does not do ("style-value").
    """
    if isinstance(style, Style):
        return style
    text = str(style)
    if text in SHIPPED:
        return shipped_style(text)
    if text.endswith(SUFFIXES):
        return _from_file(Path(text))
    raise UserError(
        f"Unknown summary style {text!r}{nearest(text, SHIPPED)}: choose one of {', '.join(SHIPPED)}, or name a YAML file.",
        code="unknown-style",
        field="style",
        value=text,
    )


def is_file(style: str) -> bool:
    """Whether a style is named by its file."""
    return style.endswith(SUFFIXES)


@cache
def shipped_style(name: str) -> Style:
    """One of `SHIPPED`."""
    import yaml

    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _from_tree(yaml.safe_load(text), name, f"style {name}")


def _from_file(path: Path) -> Style:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is no YAML in UTF-8"
        raise UserError(
            f"The style {path} cannot be read ({reason}): correct the path or the file.",
            code="style-unreadable",
            field="style",
            value=str(path),
        ) from error
    return _from_tree(tree, path.stem, str(path))


def _from_tree(tree: Any, name: str, source: str) -> Style:
    if not isinstance(tree, Mapping):
        raise _wrong(source, "style", tree, "it must hold keys and values")
    known = [field.name for field in fields(Style)]
    for key in tree:
        if key not in known:
            raise UserError(
                f"Unknown key {key!r} in {source}{nearest(str(key), known)}; known here: {', '.join(known)}.",
                code="unknown-key",
                field=str(key),
                value=source,
            )
    values = {"name": name, "names": "default", **tree}
    values["names"] = _names(values["names"], source)
    if isinstance(values.get("say"), list):
        values["say"] = tuple(values["say"])
    values["instruction"] = str(values.get("instruction") or "").strip()
    style = Style(**values)
    _check(style, source)
    return style


def _names(value: Any, source: str) -> tuple[str, ...]:
    if isinstance(value, str):
        names = named_set(value)
        if names is None:
            raise _wrong(
                source, "names", value, "name a set (default, all, ct-rate, ct-rate-lt, rad-chestct) or a list"
            )
        return names
    found = []
    for name in value if isinstance(value, list) else [value]:
        if (one := canonical(str(name))) is None:
            raise _wrong(
                source, "names", name, f"the vocabulary has no such abnormality{nearest(str(name), known_names())}"
            )
        found.append(one)
    return tuple(dict.fromkeys(found))


def _check(style: Style, source: str) -> None:
    statuses = [status.value for status in (Status.PRESENT, Status.ABSENT, Status.UNCERTAIN)]
    checks: list[tuple[str, Any, bool, str]] = [
        (
            "name",
            style.name,
            isinstance(style.name, str) and bool(_NAME.fullmatch(style.name)),
            "use letters, digits and + _ . -",
        ),
        ("version", style.version, type(style.version) is int and style.version > 0, "it is a whole number from 1 up"),
        ("form", style.form, style.form in FORMS, f"choose one of {', '.join(FORMS)}"),
        (
            "say",
            style.say,
            isinstance(style.say, tuple) and bool(style.say) and all(status in statuses for status in style.say),
            f"it is a list of {', '.join(statuses)}",
        ),
        ("parents", style.parents, style.parents in PARENTS, f"choose one of {', '.join(PARENTS)}"),
        (
            "most",
            style.most,
            style.most is None or (type(style.most) is int and style.most > 0),
            "it is a number from 1 up",
        ),
        ("backend", style.backend, style.backend in BACKENDS, f"choose one of {', '.join(BACKENDS)}"),
        ("closed", style.closed, isinstance(style.closed, bool), "it is true or false"),
        ("model", style.model, isinstance(style.model, str), "it is a name"),
        (
            "backend",
            style.backend,
            style.backend == "rules" or style.form != "report",
            "a report as it is written needs no language model",
        ),
        (
            "form",
            style.form,
            style.backend != "hybrid" or not style.is_prose,
            "a hybrid writes statements: choose statements, anatomy or line",
        ),
        (
            "instruction",
            "",
            style.backend == "rules" or bool(style.instruction),
            "a language model needs one",
        ),
    ]
    for field, value, fits, mend in checks:
        if not fits:
            raise _wrong(source, field, value, mend)


def _wrong(source: str, field: str, value: Any, mend: str) -> UserError:
    return UserError(f"{field} in {source} cannot be {value!r}: {mend}.", code="style-value", field=field, value=value)
