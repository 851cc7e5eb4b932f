"""Verbs that ask a model about scans: score them, show where a prompt is supported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")]
Metadata = Annotated[Path | None, typer.Option(help="CT-RATE's metadata CSV, for a file of its first release.")]
SeriesName = Annotated[
    str | None, typer.Option(help="SeriesInstanceUID, for a DICOM folder that holds several CT series.")
]
TrustGeometry = Annotated[
    bool, typer.Option("--trust-geometry", help="Take a geometry that contradicts itself or is no chest's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def predict(
    checkpoint: Checkpoint,
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="CTs in HU: NIfTI, NRRD, MetaImage, .npz, a DICOM series' or study's folder; several with --out."
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="A text to score; default every label's prompt.")] = None,
    pairing: Annotated[str, typer.Option(help="mean, v.t, v.t', v'.t or v'.t'.")] = "mean",
    metadata: Metadata = None,
    series: SeriesName = None,
    trust_geometry: TrustGeometry = False,
    json: AsJson = False,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of what the model sees.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A .csv or .parquet with a row a scan; folders and .txt lists give all their scans."),
    ] = None,
) -> None:
    """Score one CT: a ranked table of prompts. Or score many into a table."""
    from brgsa.errors import UserError
    from brgsa_platform.serving.scorer import ScanOptions

    options = ScanOptions(metadata, series, trust_geometry)
    if out is not None:
        from brgsa_platform.serving.scan_table import predict_many
        from brgsa_platform.serving.scorer import Scorer

        typer.echo(predict_many(Scorer(checkpoint, prompt, pairing=pairing), scans, out, options).summary())
        return
    if len(scans) > 1:
        raise UserError("Several scans go into a table: give --out table.csv.", code="several-scans", field="--out")
    from brgsa_platform.serving.predict import predict as run

    run(checkpoint, scans[0], prompt, options, pairing=pairing, picture=picture).print(as_json=json)


def heatmap(
    checkpoint: Checkpoint,
    scan: Annotated[Path, typer.Argument(help="One CT in HU, as for predict.")],
    prompt: Annotated[list[str], typer.Option(help="A text whose support is shown; once or several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the maps (NIfTI) and their picture.")] = Path("heatmap"),
    metadata: Metadata = None,
    series: SeriesName = None,
    trust_geometry: TrustGeometry = False,
    json: AsJson = False,
) -> None:
    """Show where in a CT a prompt is supported: a map a prompt on the scan's own grid, and a picture."""
    from brgsa_platform.serving.heatmap import heatmap as run
    from brgsa_platform.serving.scorer import ScanOptions

    run(checkpoint, scan, prompt, out, ScanOptions(metadata, series, trust_geometry)).print(as_json=json)


def embed(
    checkpoint: Checkpoint,
    scans: Annotated[list[Path], typer.Argument(help="CTs in HU, folders that hold some, .txt lists of paths.")],
    out: Annotated[Path, typer.Option(help="A .parquet file with a row a scan.")],
    metadata: Metadata = None,
    trust_geometry: TrustGeometry = False,
) -> None:
    """Write the embeddings of scans as Parquet: plain, and bridged where the model has a bank."""
    from brgsa_platform.serving.scan_table import embed as run
    from brgsa_platform.serving.scorer import ScanOptions, Scorer

    typer.echo(run(Scorer(checkpoint), scans, out, ScanOptions(metadata, None, trust_geometry)).summary())
