"""`brgsa labels --from reports`: what the reports say of each abnormality, as columns of the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.summaries import Status
from brgsa.summaries.hierarchy import named_set
from brgsa.summaries.reader import read
from brgsa.summaries.styles.writing import words_of
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.runtime.storage import short_error
from brgsa_platform.store.store import GIVEN, PROVENANCE, READ_LABELS, REPORT, Store
from brgsa_platform.summaries.mapping import mapped
from brgsa_platform.summaries.summarize import summariser_version
from brgsa_platform.tracking import client as tracking

NOT_MENTIONED, UNREAD = "not mentioned", "unread"
STATUSES = (Status.PRESENT.value, Status.ABSENT.value, Status.UNCERTAIN.value, NOT_MENTIONED, UNREAD)
# Of the rules, on rows 400-799 of the 800 reports of docs/summaries.md.
MEASURED_ELSEWHERE = "macro-F1 0.952 for CT-RATE's 18 abnormalities on 400 of its reports, not measured on these"


@dataclass(frozen=True)
class ReportLabels:
    """What was read.

    Attributes:
        source: for every table made from these labels: what read them, and how well.
        counts: abnormality → status → volumes.
        f1: abnormality → F1 of "present" against the archive's labels, over distinct reports; empty where it has none.
    """

    store: str
    source: str
    counts: dict[str, Counter[str]]
    f1: dict[str, float]

    def print(self) -> None:
        """Print a line an abnormality."""
        rows = [
            [name, *(f"{counts[status]:,}" for status in STATUSES), f"{self.f1[name]:.3f}" if name in self.f1 else ""]
            for name, counts in self.counts.items()
        ]
        print_table(table(("abnormality", *STATUSES, "F1"), rows, right=range(1, len(STATUSES) + 2)))
        print_line(f"{self.store}: labels from {self.source}.")


def labels_from_reports(store_path: Path | str, style: str | None = None, names: str = "default") -> ReportLabels:
    """Read the abnormalities in the reports into STORE/labels; an earlier reading is replaced.

    A store that came with labels keeps them, and serves to measure the reading; any other uses what was read wherever labels
    are asked for: a validation, a search, a label loss, an evaluation.

    Args:
        style: column of summaries to read instead of the reports, such as a language model's with present and absent findings.
        names: set of abnormalities, see `named_set`.

    Raises:
        UserError: see `Store.open` and `Store.texts`; there is no such set ("unknown-names"); no report was understood
            ("nothing-read"); the table cannot be written ("labels-unwritable").
    """
    store = Store.open(store_path)
    chosen = named_set(names)
    if chosen is None:
        raise UserError(
            f"There is no set of abnormalities {names!r}: choose default, all, ct-rate, ct-rate-lt or rad-chestct.",
            code="unknown-names",
            field="--names",
            value=names,
        )
    texts = store.texts(style or REPORT)
    reader = f"style {style}" if style else f"the rules ({summariser_version()})"
    with (
        ray_session(),
        tracking.run(
            "labels", params={"reader": reader, "names": names}, tags={"brgsa.data": store.fingerprint}
        ) as run,
    ):
        by_text: dict[str, dict[str, str]] = {}
        rows = [{"text": text} for text in sorted(set(texts.values()))]
        for batch in mapped(rows, _read_batch, {"names": chosen}, "labels: reports"):
            by_text |= dict(zip(batch["text"].tolist(), map(json.loads, batch["statuses"].tolist()), strict=True))
        statuses = {volume: by_text[text] for volume, text in texts.items()}
        if all(UNREAD in of_volume.values() for of_volume in statuses.values()):
            raise UserError(
                f"No report of {store.path} was understood, so there is nothing to label.",
                code="nothing-read",
                value=store.path,
            )
        f1 = _f1(store, statuses, chosen)
        measured = f"macro-F1 {sum(f1.values()) / len(f1):.3f} on this archive's labels" if f1 else _elsewhere(style)
        source = f"reports by {reader}: {measured}"
        _write(store, chosen, statuses, {"source": source, "f1": f1, "data": store.fingerprint})
        counts = {name: Counter(of_volume[name] for of_volume in statuses.values()) for name in chosen}
        run.set_tags({"brgsa.labels": source})
        run.log_table(
            "labels.json",
            {
                "abnormality": list(chosen),
                **{status: [counts[name][status] for name in chosen] for status in STATUSES},
                "f1": [f1.get(name) for name in chosen],
                "source": [source] * len(chosen),
            },
        )
    return ReportLabels(store.path, source, counts, f1)


def _elsewhere(style: str | None) -> str:
    return "F1 not measured" if style else MEASURED_ELSEWHERE


def _read_batch(batch: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    texts = batch["text"].tolist()
    statuses = []
    for reading in read(texts, words_of(names)):
        found = reading.statuses
        statuses.append({name: _status(found.get(name)) if reading.understood else UNREAD for name in names})
    return {"text": texts, "statuses": [json.dumps(one) for one in statuses]}


def _status(status: Status | None) -> str:
    # What there was earlier is not what there is now.
    return NOT_MENTIONED if status in (None, Status.HISTORY) else str(status)


def _f1(store: Store, statuses: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> dict[str, float]:
    """F1 of "present" against the archive's own labels; a report that several volumes share counts once."""
    if store.label_source != GIVEN:
        return {}
    reports = store.texts(REPORT)
    rows = {reports[row["volume_id"]]: row for row in store.index(["volume_id", "labels"]).to_pylist()}.values()
    out = {}
    for name in names:
        pairs = [
            (statuses[row["volume_id"]][name] == Status.PRESENT, value == 1)
            for row in rows
            if (value := (row["labels"] or {}).get(name)) is not None and statuses[row["volume_id"]][name] != UNREAD
        ]
        wanted, found = sum(true for _, true in pairs), sum(read for read, _ in pairs)
        if wanted:
            out[name] = 2 * sum(read and true for read, true in pairs) / (wanted + found)
    return out


def _write(
    store: Store, names: Sequence[str], statuses: Mapping[str, Mapping[str, str]], provenance: Mapping[str, Any]
) -> None:
    columns = {name: [of_volume[name] for of_volume in statuses.values()] for name in names}
    made = pa.table({"volume_id": list(statuses), **columns})
    made = made.replace_schema_metadata({PROVENANCE: json.dumps(provenance).encode()})
    try:
        with store.folder.written_aside(READ_LABELS) as aside:
            pq.write_table(made, aside, compression="zstd")
    except OSError as error:
        raise UserError(
            f"Labels cannot be written to {store.folder.at(READ_LABELS)} ({short_error(error)}): mend that and run it again.",
            code="labels-unwritable",
            field=READ_LABELS,
            value=store.path,
        ) from error
