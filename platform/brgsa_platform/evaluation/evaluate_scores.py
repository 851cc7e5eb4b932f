"""`brgsa evaluate --scores`: anybody's scores through the tables that a checkpoint's go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa.protocols import DEFAULT, Protocol, load_protocol
from brgsa_platform.evaluation.compare import compare
from brgsa_platform.evaluation.outputs import file_names, origin, writable_folder, write_files
from brgsa_platform.evaluation.result import EvaluationResult
from brgsa_platform.evaluation.score_files import LabelTable, read_rival, read_scored
from brgsa_platform.evaluation.scored import Scored, Setting, measure


@dataclass(frozen=True)
class ScoreFiles:
    """The tables that an evaluation of scores reads: CSV, Excel, Parquet or JSON, a column an abnormality.

    Attributes:
        scores, labels: of the volumes under test.
        validation_scores, validation_labels: of the volumes on which thresholds are chosen; their labels may be in `labels`.
        training_labels: tell which abnormalities are rare; by default the label table under test does.
        metadata: tells the voxels' sizes.
    """

    scores: Path
    labels: Path
    validation_scores: Path | None = None
    validation_labels: Path | None = None
    training_labels: Path | None = None
    metadata: Path | None = None


def evaluate_scores(
    files: ScoreFiles,
    protocol: str | Path | Protocol = DEFAULT,
    *,
    rare: Sequence[str] | None = None,
    rival: Path | None = None,
    out: Path | None = None,
) -> EvaluationResult:
    """The table of a score file under a protocol; with `out`, also as files.

    Args:
        rare: names of the rare abnormalities, in place of what prevalence tells.
        rival: another model's scores, to stand beside these.

    Raises:
        UserError: see `read_scored`, `LabelTable.read`, `load_protocol` and `measure`; rival-is-folder;
            overlapping-validation where a volume is both under test and among those on which thresholds are chosen.
    """
    if rival is not None and rival.is_dir():
        raise UserError(
            f"{rival} is a folder: without a store no checkpoint can be asked; give --compare a file of its scores.",
            code="rival-is-folder",
            field="--compare",
            value=str(rival),
        )
    chosen = load_protocol(protocol)
    labels = LabelTable.read(files.labels)
    scored, notes = read_scored(files.scores, labels, chosen, files.metadata)
    folder = None if out is None else writable_folder(out)
    fitting = _fitting(files, labels, chosen, scored)
    known = labels if files.training_labels is None else LabelTable.read(files.training_labels)
    if files.training_labels is None:
        notes.append(
            f"How common an abnormality is, all rows of {files.labels.name} tell: no training labels are given "
            "(--training-labels)."
        )
    setting = Setting(
        protocol=chosen,
        fitting=fitting,
        prevalence=known.prevalence(scored.names),
        rare=rare,
        notes=notes,
        about={"checkpoint": files.scores.name, "data": files.labels.name, "split": "", "supervised": []},
    )
    result = measure(scored, setting)
    if rival is not None:
        result = replace(result, comparison=compare(rival.name, scored, read_rival(rival, scored, chosen), setting))
    if folder is None:
        return result
    result = replace(result, files=file_names(folder, files.scores.stem), origin=origin())
    write_files(result, scored)
    return result


def _fitting(files: ScoreFiles, labels: LabelTable, protocol: Protocol, scored: Scored) -> Scored | None:
    """The volumes on which thresholds are chosen, none of which is under test; None where no scores of such are given."""
    if files.validation_scores is None:
        return None
    known = labels if files.validation_labels is None else LabelTable.read(files.validation_labels)
    fitting, _ = read_scored(files.validation_scores, known, protocol, files.metadata)
    common = set(fitting.volume_ids) & set(scored.volume_ids)
    if common:
        raise UserError(
            f"{len(common)} volumes of {files.validation_scores} are under test as well: choose thresholds on others.",
            code="overlapping-validation",
            field="--validation-scores",
            value=len(common),
        )
    return fitting.for_names(scored.names)
