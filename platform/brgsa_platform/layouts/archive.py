"""Read an archive by the name of its layout: a sorted list of volumes whose ids, patients and splits agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.layouts.ct_rate import ct_rate
from brgsa_platform.layouts.dicom import dicom
from brgsa_platform.layouts.ids import loose_id
from brgsa_platform.layouts.item import Archive, Item, Listed
from brgsa_platform.layouts.manifest import manifest
from brgsa_platform.layouts.rad_chestct import in_own_wording, rad_chestct
from brgsa_platform.layouts.tables.account import Listing, TableAccount
from brgsa_platform.layouts.tables.files import LABEL_TABLE, read_table, table_files
from brgsa_platform.layouts.tables.join import Joined, join_labels, join_reports, nothing_matched
from brgsa_platform.layouts.tables.label_columns import Labels
from brgsa_platform.layouts.tables.matching import Volumes

LAYOUTS: dict[str, Callable[[Archive], Listing]] = {
    "ct-rate": ct_rate,
    "rad-chestct": rad_chestct,
    "dicom": dicom,
    "manifest": manifest,
}


@dataclass(frozen=True)
class Reading:
    """An archive as it was read.

    Attributes:
        items: its volumes, sorted by id.
        accounts: one for each table that was read.
    """

    items: list[Item]
    accounts: list[TableAccount]


def read_archive(
    source: Path,
    layout: str,
    validation_fraction: float,
    *,
    reports: Path | None = None,
    labels: Path | None = None,
    key: bytes | None = None,
    roots: Sequence[str] = (),
) -> Reading:
    """The volumes of an archive, and what became of its tables.

    Args:
        source: the archive's folder, or a manifest.
        layout: a name of `LAYOUTS`.
        validation_fraction: share of the training patients that becomes the validation split.
        reports, labels: tables that are joined on ids and override the archive's own. Their key column holds ids of one kind:
            see `matching.match`; for DICOM those of the header, before they are hashed, or the name of the series's folder.
        key: for `dicom`, of the hashes that replace identifiers; see `identity_key`.
        roots: for `manifest`, folders or URLs that its paths may lead to, besides its own folder.

    Raises:
        UserError: an argument is wrong ("validation-fraction", "unknown-layout", "no-source"); the archive holds no volumes
            ("no-volumes"); ids repeat ("repeated-ids"); a patient is in two splits or a scan belongs to two patients
            ("conflicting-rows"); a table cannot be used (see `tables`) or belongs to other volumes ("unmatched-reports",
            "unmatched-labels").
    """
    _check_arguments(source, layout, validation_fraction)
    # Read before the archive, which may take long, so that a broken table is refused at once.
    report_table, label_table = (read_table(path) if path else None for path in (reports, labels))
    fence = [root if "://" in root else os.path.abspath(root) for root in roots]
    archive = Archive(source, validation_fraction, report_table is not None, key, fence)
    listing = LAYOUTS[layout](archive)
    listed = sorted(listing.volumes, key=lambda volume: volume.item.volume_id)
    if not listed:
        raise UserError(
            f"{source} holds no volumes in the layout {layout}: check the path and the layout.",
            code="no-volumes",
            field=str(source),
            value=layout,
        )
    _check_ids(source, listed)
    _check_one_for_each(source, listed, "patient_id", "split", "give all volumes of a patient one split")
    _check_one_for_each(source, listed, "scan_id", "patient_id", "give all reconstructions of a scan one patient")
    volumes = Volumes(listed, listing.scan_of)
    texts = join_reports(report_table, volumes) if report_table else None
    known = join_labels(label_table, volumes) if label_table else None
    if known and layout == "rad-chestct":
        known = in_own_wording(known)
    nothing_matched("reports", [texts] if texts else [], volumes)
    nothing_matched("labels", [known] if known else [], volumes)
    accounts = [*listing.accounts, *_accounts_beside(listed, texts, known)]
    return Reading([_item(volume, texts, known) for volume in listed], [*accounts, *_left_lying(source, accounts)])


def _accounts_beside(
    listed: Sequence[Listed], texts: Joined[str] | None, known: Joined[Labels] | None
) -> Iterator[TableAccount]:
    """The accounts of the tables beside the archive, with the number of volumes of which the archive says something else."""
    if texts:
        changed = sum(v.item.report not in ("", texts.of.get(v.item.volume_id) or v.item.report) for v in listed)
        yield replace(texts.account, replaced=changed)
    if known:
        changed = sum(_replaced(v.item.labels, known.of.get(v.item.volume_id, {})) for v in listed)
        yield replace(known.account, replaced=changed)


def _replaced(own: Labels, given: Labels) -> bool:
    """Whether a label that the archive knows becomes another, or unknown."""
    return any(own.get(name) is not None and own[name] != value for name, value in given.items())


def _left_lying(source: Path, accounts: Iterable[TableAccount]) -> list[TableAccount]:
    """Accounts of files beside a manifest, or in an archive's folder, that say they hold labels and that nothing has read."""
    seen = {os.path.abspath(account.path) for account in accounts}
    folder = source if source.is_dir() else source.parent
    lying = [
        path for path in table_files(folder) if LABEL_TABLE.search(path.name) and os.path.abspath(path) not in seen
    ]
    return [TableAccount("labels", str(path), unused="nobody asked for it: give it with --labels") for path in lying]


def _item(volume: Listed, texts: Joined[str] | None, known: Joined[Labels] | None) -> Item:
    """A volume with its report and labels.

    Its own row counts before its scan's, and a table beside the archive before the archive's.
    """
    item = volume.item
    given = texts.of.get(item.volume_id, "") if texts else ""
    shared = texts.shared.get(item.scan_id, "") if texts else ""
    report = given or item.report or shared or volume.shared_report
    labels = {**item.labels, **(known.of.get(item.volume_id, {}) if known else {})}
    return replace(item, report=report, labels=labels, unreported=item.unreported and not report)


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


def _check_ids(source: Path, listed: Iterable[Listed]) -> None:
    """Refuse volume ids that repeat."""
    places: dict[str, list[str]] = {}
    for volume in listed:
        places.setdefault(volume.item.volume_id, []).append(volume.origin)
    repeated = [name for name, origins in places.items() if len(origins) > 1]
    if repeated:
        shown = " and ".join(places[repeated[0]][:2])
        raise UserError(
            f"{source} names {len(repeated)} volume ids more than once (the first in {shown}): make each id unique.",
            code="repeated-ids",
            field=str(source),
            value=tuple(repeated),
        )


def _check_one_for_each(source: Path, listed: Iterable[Listed], owner: str, owned: str, mend: str) -> None:
    """Refuse an owner (a patient, say) that has more than one of what it must have once (a split).

    A patient's id counts as one also where it is written in two ways.
    """
    known: dict[str, tuple[str, str]] = {}
    for volume in listed:
        item = volume.item
        name, now = getattr(item, owner), getattr(item, owned)
        first, origin = known.setdefault(loose_id(name) if owned == "split" else name, (now, volume.origin))
        if first != now:
            raise UserError(
                f"{source} gives the {owner} of one volume ({volume.origin}) another {owned} than in {origin}, perhaps by "
                f"another spelling of the id: {mend}.",
                code="conflicting-rows",
                field=owned,
                value=item.volume_id,
            )
