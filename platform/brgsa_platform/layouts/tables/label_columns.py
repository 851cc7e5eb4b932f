"""Label columns: which abnormality a column means, however it is spelled, and what its values say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brgsa.errors import UserError
from brgsa.labels import LABEL_SETS
from brgsa_platform.layouts.ids import ID_COLUMNS, column_key
from brgsa_platform.layouts.tables.files import Table

LABELS = tuple(dict.fromkeys(name for names in LABEL_SETS.values() for name in names))

Labels = dict[str, int | None]

_KEYS = {column_key(name): name for name in LABELS}
_PLURALS = {f"{key}s": name for key, name in _KEYS.items()}
_TRUE, _FALSE = frozenset({"true", "t", "yes", "y"}), frozenset({"false", "f", "no", "n"})
_UNKNOWN = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "null", "unknown", "uncertain"})
_NUMBER = re.compile(r"[+-]?([0-9]+)(?:[.,]0*)?")
_LONGEST_SHOWN = 12  # characters of a value in a message: longer ones may be a report's

# RAD-ChestCT's own abnormalities behind CT-RATE's wording (BrgSA's evaluation). A label is present where any of its own is.
RAD_CHESTCT_SOURCES: Mapping[str, tuple[str, ...]] = {
    "Medical material": (
        "catheter_or_port",
        "tracheal_tube",
        "chest_tube",
        "breast_implant",
        "pacemaker_or_defib",
        "stent",
        "clip",
        "staple",
        "gi_tube",
        "hardware",
        "suture",
    ),
    "Calcification": ("calcification",),
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "nodulegr1cm"),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("scarring",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}
# Names that only RAD-ChestCT's own table has: with three of them a table is taken for it.
_RAD_CHESTCT_OWN = frozenset(
    column_key(source) for sources in RAD_CHESTCT_SOURCES.values() for source in sources
) - frozenset(_KEYS)
_OWN_ENOUGH = 3


@dataclass(frozen=True)
class LabelColumns:
    """The label columns of a table.

    Attributes:
        of: label → numbers of the columns that it is made of.
        whole: labels whose columns are all there. The absence of another one does not follow from the columns.
        taken: how each label column is written → the label that it means.
    """

    of: Mapping[str, tuple[int, ...]]
    whole: frozenset[str]
    taken: Mapping[str, str] = field(default_factory=dict)

    def read(self, table: Table, row: list[str], number: int) -> Labels:
        """A row's labels: abnormality → 1, 0, or None where it is unknown.

        Args:
            number: of the row, for messages.

        Raises:
            UserError: a value is no label ("bad-label").
        """
        labels: Labels = {}
        for name, columns in self.of.items():
            values = [_value(table, row, at, name, number) for at in columns]
            known = 0 if None not in values and name in self.whole else None
            labels[name] = 1 if 1 in values else known
        return labels


def label_columns(table: Table) -> LabelColumns:
    """The columns of a table that are labels. Case, blanks, underscores, hyphens and a plural do not matter.

    A table of RAD-ChestCT's own 84 abnormalities (a column each, or one for each place as `nodule*left_lung`) gives the 16
    labels of CT-CLIP's benchmark.

    Raises:
        UserError: two columns mean one label ("duplicate-column", `field` is the label).
    """
    if is_rad_chestct_s_own(table.columns):
        return _from_rad_chestct(table)
    of: dict[str, int] = {}
    for at, column in enumerate(table.columns):
        name = label_of(column)
        if name is None:
            continue
        if name in of:
            raise UserError(
                f"Two columns of {table.path} are the label {name!r} ({table.columns[of[name]]!r} and {column!r}): keep one.",
                code="duplicate-column",
                field=name,
                value=str(table.path),
            )
        of[name] = at
    ordered = {name: (of[name],) for name in LABELS if name in of}
    return LabelColumns(ordered, frozenset(ordered), {table.columns[at]: name for name, at in of.items()})


def label_of(column: str) -> str | None:
    """The published label that a column means; None where it means none."""
    key = column_key(column)
    return _KEYS.get(key) or _PLURALS.get(key)


def is_rad_chestct_s_own(columns: Iterable[str]) -> bool:
    """Whether these are the columns of RAD-ChestCT's own label table."""
    names = [column.partition("*") for column in columns]
    own = {column_key(name) for name, _, _ in names} & _RAD_CHESTCT_OWN
    placed = any(star and column_key(name) in _RAD_CHESTCT_OWN | set(_KEYS) for name, star, _ in names)
    return placed or len(own) >= _OWN_ENOUGH


def _from_rad_chestct(table: Table) -> LabelColumns:
    by_source: dict[str, list[int]] = {}
    for at, column in enumerate(table.columns):
        by_source.setdefault(column_key(column.partition("*")[0]), []).append(at)
    of: dict[str, tuple[int, ...]] = {}
    whole = set()
    taken: dict[str, str] = {}
    for name, sources in RAD_CHESTCT_SOURCES.items():
        present = [source for source in sources if column_key(source) in by_source]
        if present:
            of[name] = tuple(at for source in present for at in by_source[column_key(source)])
            taken.update({table.columns[at]: name for at in of[name]})
        if len(present) == len(sources):
            whole.add(name)
    return LabelColumns(of, frozenset(whole), taken)


def _value(table: Table, row: list[str], at: int, name: str, number: int) -> int | None:
    text = row[at]
    if text in ("0", "1"):
        return int(text)
    try:
        return parse_label(text)
    except ValueError as error:
        ids = {cell for cell, column in zip(row, table.columns, strict=True) if column_key(column) in ID_COLUMNS}
        value = text if len(text) <= _LONGEST_SHOWN and text not in ids else None
        shown = f"a text of {len(text)} characters" if value is None else repr(value)
        raise UserError(
            f"The label {name!r} in row {number} of {table.path} is {shown}: write 1 (present), 0 (absent), or nothing "
            "(unknown).",
            code="bad-label",
            field=name,
            value=value,
        ) from error


def parse_label(text: str) -> int | None:
    """1, 0, or None (unknown) for what a cell says; raises ValueError where it is no label."""
    word = text.strip().casefold()
    if word in _TRUE:
        return 1
    if word in _FALSE:
        return 0
    if word in _UNKNOWN:
        return None
    number = _NUMBER.fullmatch(word)
    value = int(word.replace(",", ".").partition(".")[0]) if number else None
    if value not in (-1, 0, 1):
        raise ValueError("no label")
    return None if value == -1 else value
