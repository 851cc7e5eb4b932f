"""Prompts, pairings and the contrast variant on vectors whose cosines are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from refusals import refused

from brgsa.labels import CT_RATE
from brgsa.protocols import load_protocol
from brgsa.zeroshot import PAIRINGS, contrast_scores, prompts, scores


class Pair(NamedTuple):
    plain: torch.Tensor
    bridged: torch.Tensor | None


def at(*degrees: float, length: float = 1.0) -> torch.Tensor:
    """Vectors of the plane at these angles: their cosines are those of the angles between them."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return length * torch.stack([radians.cos(), radians.sin()], dim=1)


VOLUMES = Pair(at(0, 90, length=3.0), at(30, 60, length=0.2))
TEXTS = Pair(at(60, length=5.0), at(0))


@pytest.mark.parametrize(
    ("pairing", "angles"),
    [
        ("v.t", [(60,), (30,)]),
        ("v.t'", [(0,), (90,)]),
        ("v'.t", [(30,), (0,)]),
        ("v'.t'", [(30,), (60,)]),
        ("mean", [(60, 30), (30, 0)]),
    ],
)
def test_each_pairing_by_hand(pairing: str, angles: list[tuple[float, ...]]) -> None:
    expected = [[sum(math.cos(math.radians(a)) for a in row) / len(row)] for row in angles]
    torch.testing.assert_close(scores(VOLUMES, TEXTS, pairing), torch.tensor(expected, dtype=torch.float64))


def test_mean_is_the_default_and_length_does_not_matter() -> None:
    longer = Pair(VOLUMES.plain * 7, VOLUMES.bridged * 0.01)
    torch.testing.assert_close(scores(longer, TEXTS), scores(VOLUMES, TEXTS, "mean"))


def test_without_a_bank_the_mean_is_plain_and_bridged_pairings_are_refused() -> None:
    bare_volumes, bare_texts = Pair(VOLUMES.plain, None), Pair(TEXTS.plain, None)
    torch.testing.assert_close(scores(bare_volumes, bare_texts), scores(VOLUMES, TEXTS, "v.t"))
    for pairing in PAIRINGS[2:]:
        with refused("pairing-needs-bank", field="pairing", value=pairing):
            scores(bare_volumes, bare_texts, pairing)


def test_unknown_pairing_is_refused() -> None:
    with refused("unknown-pairing", field="pairing", value="t.v"):
        scores(VOLUMES, TEXTS, "t.v")


def test_contrast_is_a_softmax_over_the_pair() -> None:
    present, absent = Pair(at(60, 0), None), Pair(at(0, 0), None)
    probabilities = contrast_scores(Pair(at(0), None), present, absent, inverse_temperature=10.0)
    assert probabilities.shape == (1, 2)
    assert probabilities[0, 0].item() == pytest.approx(1 / (1 + math.exp(10 * (1 - 0.5))))
    assert probabilities[0, 1].item() == pytest.approx(0.5)
    swapped = contrast_scores(Pair(at(0), None), absent, present)
    torch.testing.assert_close(probabilities + swapped, torch.ones(1, 2, dtype=torch.float64))


def test_prompts_read_as_sentences() -> None:
    assert prompts(["Pleural effusion", "COVID-19 pneumonia"]) == [
        "There is pleural effusion.",
        "There is COVID-19 pneumonia.",
    ]
    assert prompts(["Lung nodule"], "There is no {abnormality}.") == ["There is no lung nodule."]
    ct_clip = load_protocol("ct-clip").prompts
    assert [prompts(["Lung nodule"], t)[0] for t in (*ct_clip.templates, *ct_clip.contrast)] == [
        "Lung nodule is present.",
        "Lung nodule is not present.",
    ]
    assert len(set(prompts(CT_RATE))) == len(CT_RATE)


@pytest.mark.parametrize("template", ["There is a finding.", "{abnormality} and {side}", "There is {name}."])
def test_a_template_without_its_field_is_refused(template: str) -> None:
    with refused("prompt-template", field="template", value=template):
        prompts(["Lung nodule"], template)
