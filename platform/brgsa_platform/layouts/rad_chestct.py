"""RAD-ChestCT as Zenodo publishes it (record 6406114): `.npz` volumes, a metadata CSV, and labels beside them.

The column names are the archive's own: NoteAcc_DEID is a scan, VolumeAcc_DEID its file, MRN_DEID the patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.layouts.ids import IdKind, file_name, owner_id
from brgsa_platform.layouts.item import Archive, Item, Listed
from brgsa_platform.layouts.tables.account import Listing, TableAccount
from brgsa_platform.layouts.tables.files import LABEL_TABLE, read_table, table_files
from brgsa_platform.layouts.tables.join import (
    Joined,
    accounts_of,
    join_fields,
    join_labels,
    merged,
    nothing_matched,
    require_labels,
)
from brgsa_platform.layouts.tables.label_columns import Labels, is_rad_chestct_s_own
from brgsa_platform.layouts.tables.matching import Volumes

METADATA_COLUMNS = ("final_spacing", "orig_orientation")
SCAN, PATIENT = "NoteAcc_DEID", "MRN_DEID"
CALCIFICATIONS = ("Arterial wall calcification", "Coronary artery wall calcification")
NEVER_LABELLED = "Mosaic attenuation pattern"


def rad_chestct(archive: Archive) -> Listing:
    """The volumes of SRC/**/*.npz, with `*metadata*.csv` and label tables in SRC or a folder of it.

    The labels are those of a table in CT-RATE's wording where one is there, else those of the archive's own 84 abnormalities
    (see `label_columns`). The reports are not published, and the archive serves for evaluation: every volume is `test`. A
    volume without a row in the metadata is refused, because nothing says whose it is.

    Raises:
        UserError: there is no metadata ("no-table"), a table lacks a column that is needed, or two of a kind disagree
            ("disagreeing-tables").
    """
    folders = [archive.root, *sorted(path for path in archive.root.glob("*") if path.is_dir())]
    files = [file for folder in folders for file in table_files(folder)]
    paths = sorted(archive.root.rglob("*.npz"))
    plain = Volumes([_listed(archive, path, {}) for path in paths])
    metadata = _metadata(archive.root, [path for path in files if "metadata" in path.name.lower()], plain)
    fields = merged(metadata)
    volumes = Volumes([_listed(archive, path, fields.get(file_name(path.name), {})) for path in paths])
    labels, unused = _labels([path for path in files if LABEL_TABLE.search(path.name)], volumes)
    nothing_matched("labels", labels, volumes)
    known = merged(labels)
    listed = [
        replace(volume, item=replace(volume.item, labels=known.get(volume.item.volume_id, {})))
        for volume in volumes.listed
    ]
    return Listing(listed, [*accounts_of(metadata), *accounts_of(labels), *unused])


def _listed(archive: Archive, path: Path, row: Mapping[str, str | None]) -> Listed:
    """A volume with its row of the metadata, which may be empty."""
    volume = file_name(path.name)
    scan, patient = owner_id(row.get(SCAN) or ""), owner_id(row.get(PATIENT) or "")
    source = path.relative_to(archive.root).as_posix()
    item = Item(
        volume_id=volume,
        scan_id=scan or volume,
        patient_id=patient or scan or volume,
        split="test",
        path=str(path.absolute()),
        source=source,
        report="",
        metadata={name: row.get(name) for name in METADATA_COLUMNS},
        unreported=True,
        refused="" if row else "the metadata CSV has no row for it; add the row, or leave the volume out.",
    )
    # The archive's notes have one volume each, which bears their name.
    ids = {IdKind.VOLUME: [volume], IdKind.FILE: [volume], IdKind.SCAN: [scan or volume], IdKind.PATIENT: [patient]}
    return Listed(item, ids, origin=source)


def _metadata(root: Path, files: list[Path], volumes: Volumes) -> list[Joined[dict[str, str | None]]]:
    if not files:
        raise UserError(
            f"{root} holds no table *metadata*.csv: put RAD-ChestCT's CT_Scan_Metadata_*.csv there.",
            code="no-table",
            field=str(root),
            value="*metadata*.csv",
        )
    joined = []
    for file in files:
        table = read_table(file)
        table.require(SCAN, PATIENT)
        joined.append(join_fields("metadata", table, volumes, (SCAN, PATIENT, *METADATA_COLUMNS)))
    return joined


def _labels(files: list[Path], volumes: Volumes) -> tuple[list[Joined[Labels]], list[TableAccount]]:
    """The label tables to use, and accounts of those that are there and are not used."""
    tables = [read_table(file) for file in files]
    finished = [table for table in tables if not is_rad_chestct_s_own(table.columns)]
    for table in finished:
        require_labels(table)
    own = [table for table in tables if is_rad_chestct_s_own(table.columns)]
    if finished:
        reason = f"{finished[0].path.name} has the labels in CT-RATE's wording"
        unused = [TableAccount("labels", str(table.path), unused=reason) for table in own]
    else:
        finished, unused = own, []
    return [in_own_wording(join_labels(table, volumes)) for table in finished], unused


def in_own_wording(joined: Joined[Labels]) -> Joined[Labels]:
    """Labels of CT-RATE's 18 names as RAD-ChestCT's 16.

    The published table of 18 repeats the archive's one calcification under both names, and gives every volume a 0 for the
    mosaic pattern, which the archive never labelled.
    """
    taken = joined.account.taken
    if not set(CALCIFICATIONS) <= set(taken.values()):
        return joined
    renamed = {
        column: "Calcification" if name in CALCIFICATIONS else name
        for column, name in taken.items()
        if name != NEVER_LABELLED
    }
    mosaic = [column for column, name in taken.items() if name == NEVER_LABELLED]
    return replace(
        joined,
        of={volume: _renamed(labels) for volume, labels in joined.of.items()},
        account=replace(joined.account, taken=renamed, passed=[*joined.account.passed, *mosaic]),
    )


def _renamed(labels: Labels) -> Labels:
    walls = [labels.get(name) for name in CALCIFICATIONS]
    present = 1 if 1 in walls else (None if None in walls else 0)
    kept = {name: value for name, value in labels.items() if name not in (*CALCIFICATIONS, NEVER_LABELLED)}
    return {**kept, "Calcification": present}
