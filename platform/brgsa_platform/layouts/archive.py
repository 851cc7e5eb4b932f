"""From an archive and its layout to a sorted list of volumes that contradicts itself nowhere."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.layouts.ct_rate import ct_rate
from brgsa_platform.layouts.dicom import dicom
from brgsa_platform.layouts.item import Archive, Item
from brgsa_platform.layouts.manifest import manifest
from brgsa_platform.layouts.rad_chestct import rad_chestct
from brgsa_platform.layouts.tables import read_labels, read_reports

LAYOUTS: dict[str, Callable[[Archive], Iterable[Item]]] = {
    "ct-rate": ct_rate,
    "rad-chestct": rad_chestct,
    "dicom": dicom,
    "manifest": manifest,
}


def read_layout(
    source: Path,
    layout: str,
    validation_fraction: float,
    *,
    reports: Path | None = None,
    labels: Path | None = None,
    key: bytes | None = None,
    roots: Sequence[str] = (),
) -> list[Item]:
    """The volumes of an archive, sorted by id.

    Args:
        validation_fraction: share of the training patients that is set aside.
        reports, labels: tables that are joined on volume or scan ids, and win over the archive's own; see
            `tables.read_reports` and `tables.read_labels` for their columns. For DICOM the ids are SeriesInstanceUID,
            StudyInstanceUID, AccessionNumber, or the name of the series's folder.
        key: for `dicom`, of the hashes that replace identifiers; see `identity_key`.
        roots: for `manifest`, folders or URLs beside its own folder that its paths may lead to.

    Raises:
        UserError: the archive or its tables cannot be read, ids repeat, a patient stands in two splits, or a table that was
            given belongs to other volumes.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"--validation-fraction must be from 0 to below 1, not {validation_fraction}.")
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    if not source.exists():
        raise UserError(f"The source {source} does not exist: correct the path.")
    archive = Archive(
        source,
        validation_fraction,
        reports=read_reports(reports) if reports else None,
        labels=read_labels(labels) if labels else None,
        key=key,
        roots=[root if "://" in root else os.path.abspath(root) for root in roots],
    )
    items = sorted(LAYOUTS[layout](archive), key=lambda item: item.volume_id)
    if not items:
        raise UserError(f"{source} holds no volumes in the layout {layout}: check the path and the layout.")
    repeated = [name for name, count in Counter(item.volume_id for item in items).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:3]) + (" …" if len(repeated) > 3 else "")
        raise UserError(f"{source} names {len(repeated)} volume ids more than once ({shown}): make each id unique.")
    _one_for_each(source, items, "patient_id", "split", "give all volumes of a patient one split")
    _one_for_each(source, items, "scan_id", "patient_id", "give all reconstructions of a scan one patient")
    if reports and not any(item.report for item in items):
        raise UserError(f"No id of the reports {reports} is that of a volume or scan of {source}: mend its ids.")
    return items


def _one_for_each(source: Path, items: Iterable[Item], owner: str, belonging: str, mend: str) -> None:
    """Refuse an owner (a patient, say) with more than one of what belongs to it (splits), and name a volume of it."""
    found: dict[str, str] = {}
    for item in items:
        first = found.setdefault(getattr(item, owner), getattr(item, belonging))
        if first != getattr(item, belonging):
            raise UserError(
                f"{source} gives the {owner} of volume {item.volume_id} more than one {belonging} ({first} and "
                f"{getattr(item, belonging)}): {mend}."
            )
