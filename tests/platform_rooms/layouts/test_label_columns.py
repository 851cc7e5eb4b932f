"""Which abnormality a column means, and what its values say."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from brgsa.labels import RAD_CHESTCT
from brgsa_platform.layouts.tables.files import Table
from brgsa_platform.layouts.tables.label_columns import (
    LABELS,
    RAD_CHESTCT_SOURCES,
    label_columns,
    label_of,
    parse_label,
)


def table(columns: list[str], *rows: list[str]) -> Table:
    return Table(Path("labels.csv"), tuple(columns), [list(row) for row in rows], list(range(1, len(rows) + 1)))


def test_spellings_of_every_label() -> None:
    for name in LABELS:
        for written in (
            name,
            name.title(),
            name.upper(),
            f"{name} ",
            name.replace(" ", "_").lower(),
            name.replace(" ", "-"),
        ):
            assert label_of(written) == name, written
    assert label_of("Pleural effusions") == "Pleural effusion"
    for other in ("effusion", "nodule", "Cardiomegaly.1", "Wall calcification", "age", ""):
        assert label_of(other) is None, other


def test_two_columns_of_one_label_are_refused() -> None:
    with refused("duplicate-column", field="Pleural effusion"):
        label_columns(table(["volume_id", "Pleural effusion", "pleural_effusion"]))


@pytest.mark.parametrize(
    ("label", "written"),
    [
        (1, ("1", "1.0", " 1 ", "TRUE", "True", "t", "yes", "Y", "+1", "1,0")),
        (0, ("0", "0.0", "false", "F", "No", "n", "-0.0")),
        (None, ("", "NA", "n/a", "NaN", "#N/A", "-1", "-1.0", "null", "unknown", "Uncertain")),
    ],
)
def test_values_that_are_plain(label: int | None, written: tuple[str, ...]) -> None:
    assert [parse_label(text) for text in written] == [label] * len(written)


@pytest.mark.parametrize("written", ["2", "0.87", "-2", "none", "x", "1e0", "١", "positive?", "0 1", "inf"])
def test_values_that_are_unclear_are_refused_with_row_and_value(written: str) -> None:
    unclear = table(["volume_id", "lung_nodule"], ["a", "1"], ["b", written])
    with refused("bad-label", field="Lung nodule", value=written) as refusal:
        columns = label_columns(unclear)
        [columns.read(unclear, row, number) for row, number in zip(unclear.rows, unclear.numbers, strict=True)]
    assert "row 2" in str(refusal.value)


def test_a_text_in_a_label_column_is_not_repeated() -> None:
    text = "Mrs Secretname has an effusion."
    unclear = table(["Empyema"], [text])
    with refused("bad-label", field="Empyema", value=None) as refusal:
        label_columns(unclear).read(unclear, unclear.rows[0], 1)
    assert "Secretname" not in str(refusal.value)
    shifted = table(["scan_id", "Empyema"], ["4711", "4711"])
    with refused("bad-label", field="Empyema", value=None) as refusal:
        label_columns(shifted).read(shifted, shifted.rows[0], 1)
    assert "4711" not in str(refusal.value)


# --- RAD-ChestCT's own 84 abnormalities -------------------------------------------------------------------------------

SOURCES = [source for sources in RAD_CHESTCT_SOURCES.values() for source in sources]


def test_rad_chestct_s_own_columns_give_the_sixteen() -> None:
    assert set(RAD_CHESTCT_SOURCES) == set(RAD_CHESTCT)
    others = ["pneumonia", "fibrosis", "mass", "scattered_calc", "other_path"]
    columns = ["NoteAcc_DEID", *others, *SOURCES]
    for present in SOURCES:
        row = ["trn1", *["True"] * len(others), *[str(source == present) for source in SOURCES]]
        own = table(columns, row)
        expected = {name: int(present in sources) for name, sources in RAD_CHESTCT_SOURCES.items()}
        assert label_columns(own).read(own, row, 1) == expected, present


def test_rad_chestct_s_places_count_together() -> None:
    columns = [
        "NoteAcc_DEID",
        "nodule*left_lung",
        "nodule*right_upper",
        "nodulegr1cm*lung",
        "hernia*esophagus",
        "stent*aorta",
    ]
    own = table(columns, ["a", "0", "1", "0", "0", "0"], ["b", "0", "0", "0", "0", "1"], ["c", "0", "0", "", "0", "0"])
    read = [label_columns(own).read(own, row, 1) for row in own.rows]
    assert [labels["Lung nodule"] for labels in read] == [1, 0, None]
    assert [labels["Hiatal hernia"] for labels in read] == [0, 0, 0]
    # Ten kinds of device are not in this table: one that is there is told, the absence of all is not.
    assert [labels["Medical material"] for labels in read] == [None, 1, None]


def test_a_table_of_one_s_own_is_not_taken_for_rad_chestct_s() -> None:
    mine = table(["volume_id", "nodule", "clip", "Emphysema", "Pneumonia"])
    assert set(label_columns(mine).of) == {"Emphysema", "Pneumonia"}
