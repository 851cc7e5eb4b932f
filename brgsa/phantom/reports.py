"""A radiologist's report of a case. It states every rendered finding, denies much else, and doubts or recalls some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brgsa.phantom import phrases
from brgsa.phantom.cases import Case, Finding

NOT_GIVEN = "Not given."
_SECTIONS: dict[str, tuple[str, ...]] = {
    "heart": (
        "Medical material",
        "Arterial wall calcification",
        "Cardiomegaly",
        "Pericardial effusion",
        "Coronary artery wall calcification",
    ),
    "mediastinum": ("Hiatal hernia", "Lymphadenopathy", "Pneumomediastinum"),
    "lungs": (
        "Emphysema",
        "Atelectasis",
        "Lung nodule",
        "Lung opacity",
        "Mosaic attenuation pattern",
        "Consolidation",
        "Lung cyst",
        "Lung mass",
    ),
    "pleura": ("Pleural effusion", "Pneumothorax"),
}


@dataclass(frozen=True)
class Report:
    """The four text columns of CT-RATE's report table."""

    clinical: str
    technique: str
    findings: str
    impressions: str


def write_report(case: Case) -> Report:
    """The scan's report; the same case always gives the same report."""
    rng = np.random.default_rng([case.seed, 7])
    findings = {f.name: f for f in case.findings}
    stated = {n: _fill(_pick(rng, phrases.STATED[_key(f)]), f, rng) for n, f in findings.items()}
    thoroughness = rng.choice([0.0, 0.45, 0.8, 0.95], p=[0.1, 0.25, 0.35, 0.3])
    absent = [n for n in phrases.DOUBTED if n not in findings]
    doubted = _pick(rng, absent) if absent and rng.random() < 0.2 else ""
    sections = {name: _section(name, stated, doubted, thoroughness, rng) for name in _SECTIONS}
    sections["heart"] = [*_few(rng, phrases.AIRWAYS, 0, 1), *_few(rng, phrases.VESSELS, 0, 2), *sections["heart"]]
    if rng.random() < 0.6 and sections["lungs"]:
        first = sections["lungs"][0]
        sections["lungs"][0] = f"{_pick(rng, phrases.WINDOW)} {first[0].lower() + first[1:]}"
    asides = _recalled(case, findings, rng)
    if doubted:
        asides.append(_pick(rng, phrases.DOUBTED[doubted]))
    for aside in asides:
        sections[_pick(rng, ("mediastinum", "lungs", "pleura"))].append(aside)
    order = list(sections)
    if rng.random() < 0.35:
        i = int(rng.integers(len(order) - 1))
        order[i], order[i + 1] = order[i + 1], order[i]
    lines = [s for name in order for s in sections[name]]
    lines += [*_few(rng, phrases.ABDOMEN, 1, 3), *_few(rng, phrases.BONES, 1, 3)]
    return Report(
        clinical=_pick(rng, phrases.CLINICAL) if rng.random() < 0.4 else NOT_GIVEN,
        technique=_pick(rng, phrases.TECHNIQUE).format(z=round(case.reconstructions[0].spacing[2], 1))
        if rng.random() < 0.6
        else NOT_GIVEN,
        findings=" ".join(lines),
        impressions=_impressions(findings, rng),
    )


def _section(
    name: str, stated: dict[str, str], doubted: str, thoroughness: float, rng: np.random.Generator
) -> list[str]:
    """A section's statements and denials in random order; it denies each abnormality at most once, and never a doubted one."""
    denied: list[str] = []
    named: set[str] = set()
    options = phrases.DENIED[name]
    for i in rng.permutation(len(options)):
        absent, sentence = options[i]
        if (
            rng.random() < thoroughness
            and not named.intersection(absent)
            and not any(n in stated or n == doubted for n in absent)
        ):
            denied.append(sentence)
            named.update(absent)
    lines = [*(stated[n] for n in _SECTIONS[name] if n in stated), *denied]
    rng.shuffle(lines)
    return lines


def _recalled(case: Case, findings: dict[str, Finding], rng: np.random.Generator) -> list[str]:
    """Sentences on earlier abnormalities that are not rendered, and on the stability of those that are."""
    lines = [_pick(rng, phrases.REMEMBERED[n]) for n in case.gone if n in phrases.REMEMBERED and rng.random() < 0.7]
    absent = [n for n in phrases.REMEMBERED if n not in findings]
    if absent and not lines and rng.random() < 0.12:
        lines.append(_pick(rng, phrases.REMEMBERED[_pick(rng, absent)]))
    if case.scan != "a" and findings and rng.random() < 0.4:
        lines.append(_pick(rng, phrases.STABLE))
    return lines


def _impressions(findings: dict[str, Finding], rng: np.random.Generator) -> str:
    if rng.random() < 0.08:
        return NOT_GIVEN
    lines = [_fill(_pick(rng, phrases.CONCLUDED[_key(f)]), f, rng) for f in findings.values() if rng.random() < 0.8]
    if not findings:
        lines = [_pick(rng, phrases.NOTHING)]
    rng.shuffle(lines)
    return " ".join(lines) or NOT_GIVEN


def _key(finding: Finding) -> str:
    return f"{finding.name}:{finding.kind}" if finding.name == "Medical material" else finding.name


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _few(rng: np.random.Generator, options: Sequence[str], low: int, high: int) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[: int(rng.integers(low, high + 1))]]


def _join(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def _fill(template: str, finding: Finding, rng: np.random.Generator) -> str:
    """The template with the finding's places and sizes."""
    lobes = []
    for place in dict.fromkeys(finding.places):
        side, _, rest = place.partition(" ")
        rest = "lingular segment" if rest == "lingula" else rest
        lobes.append(f"{side} lung {rest}" if rng.random() < 0.6 else f"{rest} of the {side} lung")
    sides = finding.sides
    one = sides[0] if len(sides) == 1 else ""
    side = one or "bilateral"
    return template.format(
        where=_join(lobes),
        first=lobes[0] if lobes else "",
        lungs=f"the {one} lung" if one else "both lungs",
        hemi=f"the {one} hemithorax" if one else "both hemithorax",
        side=side,
        Side=side.capitalize(),
        mm=round(finding.size),
        mm2=round(finding.size * 0.8),
        cm=round(finding.size / 10, 1),
        list=_join(finding.places),
        kind=finding.kind,
    )
