"""Writes a phantom to disk as CT-RATE's first release: volumes without geometry, and everything else in tables.

Layout and column names are those of CT-RATE's dataset page (Hamamci et al. 2024). HU is stored * RescaleSlope +
RescaleIntercept.
"""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from brgsa.errors import UserError
from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa.phantom.cases import RARE, Case, sample_cases
from brgsa.phantom.render import render
from brgsa.phantom.reports import write_report
from brgsa.phantom.scanners import METADATA, intercept, metadata

REPORTS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
LT_LABELS = tuple(n for n in CT_RATE_LT if n in RARE)
_SEAL = "phantom.json"


@dataclass(frozen=True)
class PhantomSummary:
    """The contents of a finished tree: its arguments and counts."""

    scans: int
    seed: int
    patients: int
    volumes: int
    train_scans: int
    valid_scans: int


def is_phantom(path: Path) -> bool:
    """Whether a path is a tree that `write_tree` made, or lies in one."""
    return any((folder / _SEAL).is_file() for folder in (path.absolute(), *path.absolute().parents))


def write_tree(
    out: Path, scans: int, seed: int, *, workers: int | None = None, on_scan: Callable[[], None] | None = None
) -> PhantomSummary:
    """Write a phantom; an existing tree of the same scans and seed stays unchanged.

    Args:
        out: the tree's folder.
        scans: number of scans.
        workers: number of processes, by default one a core; it changes no byte of the tree.
        on_scan: is called in this process after each scan.

    Raises:
        UserError: scans is below 1, the seed is negative, or `out` holds anything else or cannot be written.
    """
    if scans < 1:
        raise UserError(
            f"scans is {scans}: a phantom needs at least 1 scan.", code="impossible-value", field="scans", value=scans
        )
    if seed < 0:
        raise UserError(
            f"seed is {seed}: give a whole number of 0 or more.", code="impossible-value", field="seed", value=seed
        )
    done = _finished(out, scans, seed)
    if done:
        return done
    aside = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        cases = sample_cases(scans, seed)
        for _ in _written(cases, aside, workers):
            if on_scan:
                on_scan()
        _write_tables(aside / "dataset", cases)
        summary = PhantomSummary(
            scans=scans,
            seed=seed,
            patients=len({(c.split, c.patient) for c in cases}),
            volumes=sum(len(c.reconstructions) for c in cases),
            train_scans=sum(c.split == "train" for c in cases),
            valid_scans=sum(c.split == "valid" for c in cases),
        )
        (aside / _SEAL).write_text(json.dumps(asdict(summary), indent=1) + "\n")
        os.replace(aside, out)
    except OSError as error:
        raise UserError(
            f"The phantom cannot be written to {out}: {error.strerror}; choose another folder.",
            code="folder-unwritable",
            field=str(out),
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return summary


def _finished(out: Path, scans: int, seed: int) -> PhantomSummary | None:
    """The summary of the tree at `out`, if it is the wanted one; None where nothing is yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        summary = PhantomSummary(**json.loads((out / _SEAL).read_text(encoding="utf-8")))
        if (summary.scans, summary.seed) == (scans, seed):
            return summary
        raise UserError(
            f"{out} holds a phantom of {summary.scans} scans and seed {summary.seed}, not of {scans} and {seed}: "
            "choose another folder or remove it.",
            code="another-phantom",
            field=str(out),
            value=(summary.scans, summary.seed),
        )
    raise UserError(
        f"{out} is not empty and holds no phantom: choose another folder or empty it.",
        code="folder-not-empty",
        field=str(out),
    )


def _written(cases: Sequence[Case], root: Path, workers: int | None) -> Iterator[None]:
    """Write all volumes; yields once a scan."""
    workers = min(workers or os.cpu_count() or 1, len(cases) // 4)
    tasks = [(case, root) for case in cases]
    if workers <= 1:
        yield from map(_write_scan, tasks)
        return
    # Spawned, not forked, as the caller may have threads (torch, Ray). An executor, not a Pool: where a worker cannot start, a
    # Pool tries for ever.
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_write_scan, tasks, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process of the phantom could not start or died: call write_tree from below "
            "`if __name__ == '__main__':`, or with workers=1.",
            code="worker-died",
        ) from error


def _write_scan(task: tuple[Case, Path]) -> None:
    case, root = task
    for index, grid in enumerate(case.reconstructions):
        name = volume_name(case, index)
        folder = root / "dataset" / case.split / f"{case.split}_{case.patient}" / case.scan_id
        folder.mkdir(parents=True, exist_ok=True)
        stored = np.rint(render(case, index) - intercept(grid)).astype(np.int16)
        nib.save(nib.Nifti1Image(stored, np.eye(4)), folder / name)  # type: ignore[no-untyped-call]


def volume_name(case: Case, index: int) -> str:
    """CT-RATE's name of a volume, as train_1_a_1.nii.gz."""
    return f"{case.scan_id}_{case.reconstructions[index].number}.nii.gz"


def _write_tables(root: Path, cases: Sequence[Case]) -> None:
    for split, long in (("train", "train"), ("valid", "validation")):
        volumes = [(c, i, volume_name(c, i)) for c in cases if c.split == split for i in range(len(c.reconstructions))]
        texts = {c.scan_id: write_report(c) for c in cases if c.split == split}
        _table(
            root / "radiology_text_reports" / f"{long}_reports.csv",
            REPORTS,
            (
                (n, r.clinical, r.technique, r.findings, r.impressions)
                for c, _, n in volumes
                for r in [texts[c.scan_id]]
            ),
        )
        _table(root / "metadata" / f"{long}_metadata.csv", METADATA, (metadata(c, i, n) for c, i, n in volumes))
        for kind, names in (("predicted", CT_RATE), ("lt", LT_LABELS)):
            _table(
                root / "multi_abnormality_labels" / f"{split}_{kind}_labels.csv",
                ("VolumeName", *names),
                ((n, *(int(label in c.names) for label in names)) for c, _, n in volumes),
            )


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
