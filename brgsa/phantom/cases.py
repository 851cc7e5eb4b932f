"""The contents of each scan of a phantom: patients, splits, findings, reconstructions. Nothing is rendered here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

COMMON: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Consolidation",
)
RARE: tuple[str, ...] = ("Pneumothorax", "Lung cyst", "Lung mass", "Pneumomediastinum")

LOBES: tuple[str, ...] = (
    "right upper lobe",
    "right middle lobe",
    "right lower lobe",
    "left upper lobe",
    "left lingula",
    "left lower lobe",
)
UPPER, LOWER = ("right upper lobe", "left upper lobe"), ("right lower lobe", "left lower lobe")

PREVALENCE: dict[str, float] = {
    "Medical material": 0.20,
    "Arterial wall calcification": 0.26,
    "Cardiomegaly": 0.20,
    "Pericardial effusion": 0.16,
    "Coronary artery wall calcification": 0.24,
    "Hiatal hernia": 0.18,
    "Lymphadenopathy": 0.25,
    "Emphysema": 0.22,
    "Atelectasis": 0.22,
    "Lung nodule": 0.32,
    "Lung opacity": 0.28,
    "Pleural effusion": 0.20,
    "Mosaic attenuation pattern": 0.18,
    "Consolidation": 0.22,
}
# (earlier in COMMON, later): the factor on the later one's probability where the earlier one is; its prevalence stays as above.
COMPANIONS: dict[tuple[str, str], float] = {
    ("Arterial wall calcification", "Coronary artery wall calcification"): 1.4,
    ("Cardiomegaly", "Pleural effusion"): 1.3,
    ("Atelectasis", "Pleural effusion"): 1.4,
    ("Lung opacity", "Consolidation"): 1.3,
}
CHRONIC = frozenset(COMMON[i] for i in (0, 1, 2, 4, 5, 7))
RARE_SHARE = {"train": 0.02, "valid": 0.09}
TRAIN_SHARE, TWO_SCANS, SHARP, HEALTHY = 0.72, 0.16, 0.15, 0.10


@dataclass(frozen=True)
class Finding:
    """One abnormality of a scan as it is rendered and reported.

    Attributes:
        places: lobes, sides, vessels or lymph node stations, depending on the abnormality.
        size: mm of the largest one, or 0 where it is not measured; for cardiomegaly, the factor on the heart's size.
        count: how many there are.
        kind: of medical material and emphysema.
    """

    name: str
    places: tuple[str, ...] = ()
    size: float = 0.0
    count: int = 1
    kind: str = ""

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that the places name: "right", "left", both or none."""
        return tuple(s for s in ("right", "left") if any(p.startswith(s) for p in self.places))


@dataclass(frozen=True)
class Case:
    """One scan of a patient.

    Attributes:
        patient: number within the split, from 1.
        scan: "a" or "b", the patient's first or second scan.
        age: years.
        build_seed, seed: of the patient's build, and of this scan's findings and noise.
        gone: abnormalities of the patient's first scan that the second no longer has.
        reconstructions: its volumes.
    """

    split: str
    patient: int
    scan: str
    female: bool
    age: int
    build_seed: int
    seed: int
    findings: tuple[Finding, ...]
    gone: tuple[str, ...]
    reconstructions: tuple[Reconstruction, ...]

    @property
    def scan_id(self) -> str:
        """CT-RATE's name of the scan, as train_1_a."""
        return f"{self.split}_{self.patient}_{self.scan}"

    @property
    def names(self) -> frozenset[str]:
        """The abnormalities that are rendered, which are the labels."""
        return frozenset(f.name for f in self.findings)


@dataclass(frozen=True)
class Reconstruction:
    """The grid, kernel and scanner of one volume; spacing in mm, noise in HU."""

    number: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    kernel: str
    noise: float
    scanner: str


def sample_cases(scans: int, seed: int) -> list[Case]:
    """The cases of a phantom: `scans` scans, one or two a patient, about 72 % in "train" and the rest in "valid".

    Common abnormalities are drawn with PREVALENCE; rare ones are given to an exact share of each split (RARE_SHARE).
    """
    rng = np.random.default_rng([seed, 1])
    sizes: list[int] = []
    while sum(sizes) < scans:
        sizes.append(min(2 if rng.random() < TWO_SCANS else 1, scans - sum(sizes)))
    filled, splits = 0, []
    for size in sizes:
        splits.append("train" if filled + size / 2 <= TRAIN_SHARE * scans else "valid")
        filled += size
    people: dict[str, int] = {"train": 0, "valid": 0}
    slots: list[tuple[str, int, int]] = []
    for split, size in zip(splits, sizes, strict=True):
        people[split] += 1
        slots += [(split, people[split], scan) for scan in range(size)]
    rare = _rare_owners([s[0] for s in slots], rng)
    cases: list[Case] = []
    for index, (split, patient, scan) in enumerate(slots):
        before = cases[-1] if scan else None
        cases.append(_case(split, patient, scan, rare[index], before, np.random.default_rng([seed, 2, index])))
    return cases


def _rare_owners(splits: list[str], rng: np.random.Generator) -> list[list[str]]:
    """The rare abnormalities of every scan; no scan gets two as long as there are enough scans."""
    owners: list[list[str]] = [[] for _ in splits]
    for split, share in RARE_SHARE.items():
        mine = rng.permutation([i for i, s in enumerate(splits) if s == split])
        if len(mine):
            each = round(share * len(mine))
            for k, index in enumerate(np.resize(mine, each * len(RARE))):
                owners[index].append(RARE[k // each])
    return owners


def _case(split: str, patient: int, scan: int, rare: list[str], before: Case | None, rng: np.random.Generator) -> Case:
    names = _draw(rng)
    findings = {n: SAMPLERS[n](rng) for n in (*COMMON, *RARE) if n in names or n in rare}
    if before:
        for name in CHRONIC:
            findings.pop(name, None)
        findings |= {f.name: f for f in before.findings if f.name in CHRONIC}
    first = _reconstruction(1, "soft", rng)
    both = (first, _reconstruction(2, "sharp", rng, first)) if rng.random() < SHARP else (first,)
    return Case(
        split=split,
        patient=patient,
        scan="ab"[scan],
        female=before.female if before else bool(rng.random() < 0.42),
        age=before.age if before else int(np.clip(rng.normal(54, 16), 18, 92)),
        build_seed=before.build_seed if before else int(rng.integers(2**31)),
        seed=int(rng.integers(2**31)),
        findings=tuple(findings[n] for n in (*COMMON, *RARE) if n in findings),
        gone=tuple(f.name for f in before.findings if f.name not in findings) if before else (),
        reconstructions=both,
    )


def _draw(rng: np.random.Generator) -> set[str]:
    """The common abnormalities of one scan: none for some; for others each is drawn alone, likelier beside a companion."""
    names: set[str] = set()
    if rng.random() < HEALTHY:
        return names
    for name in COMMON:
        chance = PREVALENCE[name] / (1 - HEALTHY)
        for other in COMMON[: COMMON.index(name)]:
            pull = COMPANIONS.get((other, name), 1.0)
            chance *= pull if other in names else (1 - pull * PREVALENCE[other]) / (1 - PREVALENCE[other])
        if rng.random() < chance:
            names.add(name)
    return names


def _reconstruction(
    number: int, kernel: str, rng: np.random.Generator, first: Reconstruction | None = None
) -> Reconstruction:
    view = first.shape[0] * first.spacing[0] if first else rng.uniform(352, 384)
    across = int(rng.integers(92, 111))
    length = first.shape[2] * first.spacing[2] if first else rng.uniform(236, 258)
    deep = int(np.clip(round(length / rng.uniform(4.6, 6.6)), 36, 56))
    pitch = round(float(np.clip(view / across, 3.2, 4.2)), 4)
    return Reconstruction(
        number=number,
        shape=(across, across, deep),
        spacing=(pitch, pitch, round(float(length / deep), 2)),
        kernel=kernel,
        noise=float(rng.uniform(9, 20) if kernel == "soft" else rng.uniform(26, 44)),
        scanner=first.scanner
        if first
        else str(rng.choice(["iCT 256", "SOMATOM go.All", "Brilliance Big Bore", "SOMATOM Force"])),
    )


def _some(rng: np.random.Generator, options: tuple[str, ...], low: int, high: int) -> tuple[str, ...]:
    chosen = rng.choice(len(options), size=int(rng.integers(low, min(high, len(options)) + 1)), replace=False)
    return tuple(options[i] for i in sorted(chosen))


def _mm(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 0)


def _medical_material(rng: np.random.Generator) -> Finding:
    kind = str(rng.choice(["pacemaker", "port", "sternotomy"]))
    return Finding(
        "Medical material", ("right",) if kind == "port" else ("left",) if kind == "pacemaker" else (), kind=kind
    )


def _sides(rng: np.random.Generator, both: float) -> tuple[str, ...]:
    return ("right", "left") if rng.random() < both else (("right",), ("left",))[int(rng.random() < 0.5)]


SAMPLERS: dict[str, Callable[[np.random.Generator], Finding]] = {
    "Medical material": _medical_material,
    "Arterial wall calcification": lambda r: Finding(
        "Arterial wall calcification",
        tuple(
            p
            for p, chance in (("aortic arch", 1.0), ("descending aorta", 0.8), ("ascending aorta", 0.3))
            if r.random() < chance
        ),
    ),
    "Cardiomegaly": lambda r: Finding("Cardiomegaly", size=float(r.uniform(1.28, 1.42))),
    "Pericardial effusion": lambda r: Finding("Pericardial effusion", size=_mm(r, 16, 28)),
    "Coronary artery wall calcification": lambda r: Finding(
        "Coronary artery wall calcification", ("LAD", *_some(r, ("RCA", "circumflex artery"), 1, 2))
    ),
    "Hiatal hernia": lambda r: Finding("Hiatal hernia", size=_mm(r, 54, 78)),
    "Lymphadenopathy": lambda r: Finding(
        "Lymphadenopathy",
        _some(
            r, ("prevascular", "right paratracheal", "aortopulmonary", "subcarinal", "right hilar", "left hilar"), 5, 6
        ),
        size=_mm(r, 28, 38),
    ),
    "Emphysema": lambda r: Finding(
        "Emphysema", UPPER, count=int(r.integers(60, 95)), kind=str(r.choice(["centriacinar", "paraseptal", "bullous"]))
    ),
    "Atelectasis": lambda r: Finding(
        "Atelectasis", _some(r, ("right middle lobe", "right lower lobe", "left lingula", "left lower lobe"), 1, 3)
    ),
    "Lung nodule": lambda r: Finding(
        "Lung nodule", _some(r, LOBES, 3, 5), size=_mm(r, 25, 30), count=int(r.integers(13, 21))
    ),
    "Lung opacity": lambda r: Finding("Lung opacity", _some(r, LOBES, 2, 5), size=_mm(r, 60, 92)),
    "Pleural effusion": lambda r: Finding("Pleural effusion", _sides(r, 0.45), size=_mm(r, 28, 62)),
    "Mosaic attenuation pattern": lambda r: Finding("Mosaic attenuation pattern", ("right", "left")),
    "Consolidation": lambda r: Finding("Consolidation", _some(r, LOBES[1:3] + LOBES[4:], 2, 3), size=_mm(r, 64, 92)),
    "Pneumothorax": lambda r: Finding("Pneumothorax", _sides(r, 0.0), size=_mm(r, 36, 58)),
    "Lung cyst": lambda r: Finding("Lung cyst", _some(r, LOWER, 1, 2), size=_mm(r, 60, 82), count=4),
    "Lung mass": lambda r: Finding("Lung mass", _some(r, UPPER, 1, 1), size=_mm(r, 72, 98)),
    "Pneumomediastinum": lambda r: Finding("Pneumomediastinum", ("mediastinum",)),
}
