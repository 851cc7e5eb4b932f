"""RAD-ChestCT as Zenodo publishes it (record 6406114): `.npz` volumes, a metadata CSV, and labels beside them.

The column names are the archive's own: NoteAcc_DEID is a scan, VolumeAcc_DEID its file, MRN_DEID the patient.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.layouts.item import Archive, Item
from brgsa_platform.layouts.tables import cell_text, read_labels, read_table, require_columns, rows_of, without_suffix

METADATA_COLUMNS = ("final_spacing", "orig_orientation")
# The archive's own table has 84 abnormalities at 52 places, with other names than the 16 labels of CT-CLIP's benchmark.
OTHER_LABELS = "abnormality_and_location"


def rad_chestct(archive: Archive) -> Iterable[Item]:
    """The volumes of SRC/**/*.npz, with `*metadata*.csv` and `*labels*.csv` in SRC or a folder of it.

    The reports are not published, and the archive serves for evaluation: every volume is `test`. A volume without a row in
    the metadata is refused, because nothing says whose it is.

    Raises:
        UserError: there is no metadata ("no-table"), or a table lacks a column that is needed.
    """
    tables = sorted({*archive.root.glob("*.csv"), *archive.root.glob("*/*.csv")})
    metadata = _metadata(archive.root, [path for path in tables if "metadata" in path.name.lower()])
    labels: dict[str, dict[str, int | None]] = {}
    for path in tables:
        if "labels" in path.name.lower() and OTHER_LABELS not in path.name.lower():
            for name, row_labels in read_labels(path).items():
                labels.setdefault(name, {}).update(row_labels)
    for path in sorted(archive.root.rglob("*.npz")):
        volume = path.stem
        row = metadata.get(volume)
        scan = cell_text((row or {}).get("NoteAcc_DEID")) or volume
        report = archive.report_of(volume, scan)
        yield Item(
            volume_id=volume,
            scan_id=scan,
            patient_id=cell_text((row or {}).get("MRN_DEID")) or scan,
            split="test",
            path=str(path.absolute()),
            source=path.relative_to(archive.root).as_posix(),
            report=report,
            labels={**(labels.get(volume) or labels.get(scan) or {}), **archive.labels_of(volume, scan)},
            metadata={field: (row or {}).get(field) for field in METADATA_COLUMNS},
            unreported=not report,
            refused="" if row else "the metadata CSV has no row for it; add the row, or leave the volume out.",
        )


def _metadata(root: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Volume or scan id → row of the metadata."""
    if not files:
        raise UserError(
            f"{root} holds no table *metadata*.csv: put RAD-ChestCT's CT_Scan_Metadata_*.csv there.",
            code="no-table",
            field=str(root),
            value="*metadata*.csv",
        )
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        table = read_table(file)
        require_columns(file, table, ("NoteAcc_DEID", "MRN_DEID"))
        for row in rows_of(table):
            for column in ("NoteAcc_DEID", "VolumeAcc_DEID"):
                if name := without_suffix(cell_text(row.get(column))):
                    rows[name] = row
    return rows
