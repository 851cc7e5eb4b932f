"""Read an archive by the name of its layout: a sorted list of volumes whose ids, patients and splits agree."""

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
        source: the archive's folder, or a manifest.
        layout: a name of `LAYOUTS`.
        validation_fraction: share of the training patients that becomes the validation split.
        reports, labels: tables that are joined on volume or scan ids and override the archive's own; for their columns see
            `tables.read_reports` and `tables.read_labels`. For DICOM the ids are SeriesInstanceUID, StudyInstanceUID,
            AccessionNumber, or the name of the series's folder.
        key: for `dicom`, of the hashes that replace identifiers; see `identity_key`.
        roots: for `manifest`, folders or URLs that its paths may lead to, besides its own folder.

    Raises:
        UserError: an argument is wrong ("validation-fraction", "unknown-layout", "no-source"); the archive holds no volumes
            ("no-volumes"); ids repeat ("repeated-ids"); a patient is in two splits or a scan belongs to two patients
            ("conflicting-rows"); a table cannot be used (see `tables`) or belongs to other volumes ("unmatched-reports").
    """
    _check_arguments(source, layout, validation_fraction)
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
        raise UserError(
            f"{source} holds no volumes in the layout {layout}: check the path and the layout.",
            code="no-volumes",
            field=str(source),
            value=layout,
        )
    _check_ids(source, items)
    _check_one_for_each(source, items, "patient_id", "split", "give all volumes of a patient one split")
    _check_one_for_each(source, items, "scan_id", "patient_id", "give all reconstructions of a scan one patient")
    if reports and not any(item.report for item in items):
        raise UserError(
            f"No id of the reports {reports} is that of a volume or scan of {source}: mend its ids.",
            code="unmatched-reports",
            field=str(reports),
            value=str(source),
        )
    return items


def _check_arguments(source: Path, layout: str, validation_fraction: float) -> None:
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"--validation-fraction must be from 0 to below 1, not {validation_fraction}.",
            code="validation-fraction",
            field="--validation-fraction",
            value=validation_fraction,
        )
    if layout not in LAYOUTS:
        raise UserError(
            f"There is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}.",
            code="unknown-layout",
            field="--layout",
            value=layout,
        )
    if not source.exists():
        raise UserError(f"The source {source} does not exist: correct the path.", code="no-source", field=str(source))


def _check_ids(source: Path, items: Iterable[Item]) -> None:
    """Refuse volume ids that repeat."""
    repeated = [name for name, count in Counter(item.volume_id for item in items).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:3]) + (" …" if len(repeated) > 3 else "")
        raise UserError(
            f"{source} names {len(repeated)} volume ids more than once ({shown}): make each id unique.",
            code="repeated-ids",
            field=str(source),
            value=tuple(repeated),
        )


def _check_one_for_each(source: Path, items: Iterable[Item], owner: str, owned: str, mend: str) -> None:
    """Refuse an owner (a patient, say) that has more than one of what it must have once (a split); names a volume of it."""
    known: dict[str, str] = {}
    for item in items:
        first, now = known.setdefault(getattr(item, owner), getattr(item, owned)), getattr(item, owned)
        if first != now:
            raise UserError(
                f"{source} gives the {owner} of volume {item.volume_id} more than one {owned} ({first} and {now}): {mend}.",
                code="conflicting-rows",
                field=owned,
                value=item.volume_id,
            )
