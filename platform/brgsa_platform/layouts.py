"""Archives as they lie on disk, to one list of volumes: `ct-rate` and `manifest`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa.errors import UserError
from brgsa.labels import LABEL_SETS

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
LABELS = tuple(dict.fromkeys(name for names in LABEL_SETS.values() for name in names))
NOT_GIVEN = "Not given."
METADATA = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImageOrientationPatient")
LABEL_TABLES = "*labels*.csv"
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Item:
    """One volume to prepare.

    Attributes:
        path: the file.
        source: the same below the archive's folder, as the store keeps it.
        report: its text; empty where there is none.
        labels: 1, 0, or None (unknown) per label name.
        metadata: CT-RATE's metadata row, for files whose header says nothing; None in layouts without one.
    """

    volume_id: str
    scan_id: str
    patient_id: str
    split: str
    path: str
    source: str
    report: str
    labels: dict[str, int | None] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_layout(source: Path, layout: str, validation_fraction: float) -> list[Item]:
    """The volumes of an archive, sorted by id.

    Raises:
        UserError: the archive or its tables cannot be read, ids repeat, or a patient stands in two splits.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"--validation-fraction must be from 0 to below 1, not {validation_fraction}.")
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    if not source.exists():
        raise UserError(f"The source {source} does not exist: correct the path.")
    items = sorted(LAYOUTS[layout](source, validation_fraction), key=lambda item: item.volume_id)
    if not items:
        raise UserError(f"{source} holds no volumes in the layout {layout}: check the path and the layout.")
    repeated = [name for name, count in Counter(item.volume_id for item in items).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:3]) + (" …" if len(repeated) > 3 else "")
        raise UserError(f"{source} names {len(repeated)} volume ids more than once ({shown}): make each id unique.")
    _one_for_each(source, items, "patient_id", "split", "give all volumes of a patient one split")
    _one_for_each(source, items, "scan_id", "patient_id", "give all reconstructions of a scan one patient")
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


def ct_rate(source: Path, validation_fraction: float) -> Iterable[Item]:
    """CT-RATE's tree: dataset/{train,valid}/PATIENT/SCAN/VOLUME.nii.gz, and tables of reports, metadata and labels.

    `train_fixed` and `valid_fixed`, the later release's folders, are read too. "valid" is the published test set; the
    validation split is cut from "train" by patient. A volume without its own row of the reports has that of another
    reconstruction of its scan.
    """
    root = source / "dataset" if (source / "dataset").is_dir() else source
    reports = _tables(root / "radiology_text_reports", "*reports*.csv", ("Findings_EN", "Impressions_EN"))
    metadata = _tables(root / "metadata", "*metadata*.csv", (), required=False)
    labels = _tables(root / "multi_abnormality_labels", LABEL_TABLES, (), required=False)
    by_scan = {_scan_of(name): row for name, row in reports.items()}
    for split in ("train", "valid"):
        for path in sorted(p for folder in (split, f"{split}_fixed") for p in (root / folder).glob("*/*/*.nii.gz")):
            name = path.name
            scan = _scan_of(name)
            patient = scan.rpartition("_")[0] or scan
            row = reports.get(name) or by_scan.get(scan, {})
            yield Item(
                volume_id=name.removesuffix(".nii.gz"),
                scan_id=scan,
                patient_id=patient,
                split="test" if split == "valid" else _split_of(patient, 0.0, validation_fraction),
                path=str(path.absolute()),
                source=path.relative_to(root).as_posix(),
                report=_joined(row.get("Findings_EN"), row.get("Impressions_EN")),
                labels=_labels(labels.get(name, {}), name),
                metadata={field: metadata.get(name, {}).get(field) for field in METADATA},
            )


def _scan_of(volume_name: str) -> str:
    """train_1_a of train_1_a_2.nii.gz."""
    stem = volume_name.removesuffix(".nii.gz")
    return stem.rpartition("_")[0] or stem


def manifest(source: Path, validation_fraction: float) -> Iterable[Item]:
    """A CSV or Parquet table: `volume` (path, relative to the table's folder), `report`, and optionally `volume_id`,
    `scan_id`, `patient_id`, `split` and a 0/1 column a label.

    Without `split`, a tenth of the patients is the test set and `validation_fraction` the validation set.
    """
    table = _read_table(source)
    for column in ("volume", "report"):
        if column not in table.columns:
            raise UserError(
                f"The manifest {source} has no column {column!r}; it has: {', '.join(map(str, table.columns))}."
            )
    for number, row in enumerate(table.to_dict("records"), start=1):
        volume = _text(row["volume"])
        if not volume:
            raise UserError(f"The manifest {source} has no path in column 'volume' in row {number}.")
        path = Path(volume) if Path(volume).is_absolute() else source.parent / volume
        volume_id = _text(row.get("volume_id")) or _stem(path)
        scan = _text(row.get("scan_id")) or volume_id
        patient = _text(row.get("patient_id")) or scan
        split = _text(row.get("split")) or _split_of(patient, 0.1, validation_fraction)
        if split not in SPLITS:
            raise UserError(
                f"The manifest {source} has the split {split!r} in row {number}: use one of {', '.join(SPLITS)}."
            )
        yield Item(
            volume_id=volume_id,
            scan_id=scan,
            patient_id=patient,
            split=split,
            path=str(path.absolute()),
            source=volume,
            report=_text(row["report"]),
            labels=_labels(row, volume_id),
        )


LAYOUTS: dict[str, Callable[[Path, float], Iterable[Item]]] = {"ct-rate": ct_rate, "manifest": manifest}


def _tables(folder: Path, pattern: str, columns: tuple[str, ...], required: bool = True) -> dict[str, dict[str, Any]]:
    """Rows of all tables of a kind, merged by VolumeName."""
    files = sorted(folder.glob(pattern))
    if required and not files:
        raise UserError(f"{folder} holds no table {pattern}: CT-RATE's layout needs one there.")
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        table = _read_table(file)
        for column in ("VolumeName", *columns):
            if column not in table.columns:
                raise UserError(f"{file} has no column {column!r}; it has: {', '.join(map(str, table.columns))}.")
        if pattern == LABEL_TABLES and not set(LABELS) & set(table.columns):
            raise UserError(f"{file} has no column of a known abnormality, such as {LABELS[0]!r}: mend or remove it.")
        for row in table.to_dict("records"):
            rows.setdefault(str(row["VolumeName"]), {}).update({str(k): v for k, v in row.items()})
    return rows


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # As written: an id of 007 is not 7, and a report may be the word None.
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise UserError(f"The table {path} is empty: give one with a header and a row a volume.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"The table {path} cannot be read ({str(error).splitlines()[0]}): mend or replace it."
        ) from error


def _split_of(patient: str, test: float, validation: float) -> str:
    """A patient's split, from a hash of the id: the same in every run and for every order of the table."""
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def _joined(findings: Any, impressions: Any) -> str:
    parts = []
    for title, text in (("Findings", _text(findings)), ("Impression", _text(impressions))):
        if text and text != NOT_GIVEN:
            parts.append(f"{title}: {text}")
    return " ".join(parts)


def _labels(row: Mapping[Any, Any], volume: str) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name in LABELS:
        if name not in row:
            continue
        value = row[name]
        if value is None or value != value or value == "":
            found[name] = None
        elif value in (0, 1, "0", "1", "0.0", "1.0"):
            found[name] = int(float(value))
        else:
            raise UserError(f"The label {name!r} of volume {volume} is {value!r}: use 0, 1 or nothing.")
    return found


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def _stem(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
