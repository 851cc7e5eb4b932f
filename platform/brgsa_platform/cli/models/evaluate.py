"""`brgsa evaluate`: a checkpoint, or anybody's scores, under a protocol."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brgsa.errors import UserError

if TYPE_CHECKING:
    from brgsa_platform.evaluation.result import EvaluationResult

Checkpoint = Annotated[Path | None, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")]
Data = Annotated[str | None, typer.Option(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
ProtocolName = Annotated[
    str, typer.Option(help="honest, brgsa-paper, ct-clip, radfinder-mean7, scan, or the path of a YAML file.")
]
Resamples = Annotated[int | None, typer.Option(help="Bootstrap resamples, in place of the protocol's.")]
Out = Annotated[Path | None, typer.Option(help="Folder for tables; default the checkpoint's; of scores none.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as one line of JSON.")]
Scores = Annotated[
    Path | None, typer.Option(help="A model's scores in place of a checkpoint: a column an abnormality.")
]
Labels = Annotated[Path | None, typer.Option(help="The labels of the scored volumes.")]
Compare = Annotated[
    Path | None, typer.Option(help="Another model beside it: a run, a checkpoint, or a file of scores.")
]
Workers = Annotated[int, typer.Option(help="Processes that encode volumes; the figures are the same.")]
Keep = Annotated[bool, typer.Option("--save-embeddings", help="Keep v, v', t and t' as Parquet beside the tables.")]
Embeddings = Annotated[Path | None, typer.Option(help="Folder with embeddings that --save-embeddings kept.")]
ValidationScores = Annotated[Path | None, typer.Option(help="Scores on which thresholds are chosen.")]
ValidationLabels = Annotated[Path | None, typer.Option(help="Their labels, where --labels has them not.")]
TrainingLabels = Annotated[Path | None, typer.Option(help="Labels that tell which abnormalities are rare.")]
Metadata = Annotated[Path | None, typer.Option(help="Voxel sizes of scored volumes: XYSpacing and ZSpacing.")]


def evaluate(
    checkpoint: Checkpoint = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    pairing: Annotated[str, typer.Option(help="mean, v.t, v.t', v'.t or v'.t'.")] = "mean",
    protocol: ProtocolName = "honest",
    resamples: Resamples = None,
    out: Out = None,
    compare: Compare = None,
    workers: Workers = 1,
    save_embeddings: Keep = False,
    embeddings: Embeddings = None,
    scores: Scores = None,
    labels: Labels = None,
    validation_scores: ValidationScores = None,
    validation_labels: ValidationLabels = None,
    training_labels: TrainingLabels = None,
    metadata: Metadata = None,
    json: Json = False,
) -> None:
    """Measure a checkpoint on a split, or a file of scores: a table per abnormality with 95 % intervals."""
    from brgsa_platform.evaluation.evaluate_scores import ScoreFiles, evaluate_scores
    from brgsa_platform.evaluation.options import with_resamples

    if scores is not None:
        if checkpoint is not None or data is not None:
            raise UserError(
                "--scores takes the place of a checkpoint and --data: give either.",
                code="options-conflict",
                field="--scores",
            )
        if labels is None:
            raise UserError("--scores needs --labels, a table of the same volumes.", code="no-labels", field="--labels")
        files = ScoreFiles(scores, labels, validation_scores, validation_labels, training_labels, metadata)
        _show(evaluate_scores(files, with_resamples(protocol, resamples), rival=compare, out=out), json)
        return
    if checkpoint is None or data is None:
        raise UserError(
            "An evaluation needs a checkpoint and --data STORE, or --scores FILE and --labels FILE.",
            code="no-checkpoint",
            field="checkpoint" if checkpoint is None else "--data",
        )
    from brgsa_platform.evaluation.evaluate import EvaluateOptions
    from brgsa_platform.evaluation.evaluate import evaluate as run

    options = EvaluateOptions(
        protocol=protocol,
        pairing=pairing,
        resamples=resamples,
        workers=workers,
        save_embeddings=save_embeddings,
        embeddings=embeddings,
        compare=compare,
    )
    _show(run(checkpoint, data, split, options, out=out), json)


def _show(result: EvaluationResult, as_json: bool) -> None:
    """The table, or one line of JSON on standard output and what is to be said of it on standard error."""
    from brgsa_platform.evaluation import tables

    if not as_json:
        tables.print_result(result)
        return
    for line in tables.summary(result):
        print(line, file=sys.stderr)
    print(tables.to_line(result))
