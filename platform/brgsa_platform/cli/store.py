"""Verbs that make a store from an archive, and `brgsa store …`, which shows what it holds."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brgsa_platform.cli.options import StoreArgument

app = typer.Typer(
    help="What a store holds, whether it is whole, what a volume looks like.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Layout(StrEnum):
    """How an archive lies on disk."""

    CT_RATE = "ct-rate"
    RAD_CHESTCT = "rad-chestct"
    DICOM = "dicom"
    MANIFEST = "manifest"


class Interpolation(StrEnum):
    """How resampling finds the values between voxels."""

    LINEAR = "linear"
    NEAREST = "nearest"
    CUBIC = "cubic"


Spacing = Annotated[tuple[float, float, float], typer.Option(help="Voxel size x y z in mm.")]
Shape = Annotated[tuple[int, int, int], typer.Option(help="Voxels x y z after crop or pad.")]
Clip = Annotated[tuple[float, float], typer.Option(help="Lowest and highest HU kept.")]
BetweenVoxels = Annotated[Interpolation, typer.Option(help="How to find the values between voxels.")]
Antialias = Annotated[bool, typer.Option(help="Smooth before downsampling; for coarse grids.")]
Reports = Annotated[Path | None, typer.Option(help="Reports by volume or scan id: CSV, Excel, Parquet or JSON.")]
Labels = Annotated[Path | None, typer.Option(help="Labels by volume or scan id: CSV, Excel, Parquet or JSON.")]
IdKey = Annotated[
    Path | None,
    typer.Option(help="dicom: key of the hashes for identifiers; default BRGSA_ID_KEY or ~/.config/brgsa/id-key."),
]
Roots = Annotated[
    list[str] | None,
    typer.Option(help="manifest: folder or s3:// URL that it may lead to, besides its own folder. May be repeated."),
]
ValidationFraction = Annotated[float, typer.Option(help="Share of training patients set aside.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse whatever a check doubts: volumes, and tables whose ids differ by spelling."),
]
TrustGeometry = Annotated[
    bool, typer.Option("--trust-geometry", help="Take geometries that contradict themselves or are no chest's.")
]
RetryQuarantined = Annotated[bool, typer.Option("--retry-quarantined", help="Try again what was refused before.")]
Workers = Annotated[int | None, typer.Option(help="Volumes read at a time; default one for each CPU.", min=1)]


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the CT-RATE-shaped tree.")],
    scans: Annotated[int, typer.Option(help="Scans; some have two reconstructions.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tree.")] = 0,
) -> None:
    """Write synthetic chest CTs with reports and exact labels, in CT-RATE's folder layout."""
    from brgsa.phantom import write_tree
    from brgsa_platform.runtime.progress import progress

    with progress(scans, "render scans") as advance:
        made = write_tree(out, scans, seed, on_scan=advance)
    typer.echo(
        f"{made.scans} scans, {made.volumes} volumes in {out}. Next: brgsa prepare {out} --layout ct-rate --out STORE"
    )


def prepare(
    source: Annotated[Path, typer.Argument(help="An archive's folder, or a manifest: a table of volumes.")],
    layout: Annotated[Layout, typer.Option(help="How the source is laid out.")],
    out: Annotated[str, typer.Option(help="The store to write or to add to: a folder or an s3:// URL.")],
    spacing: Spacing = (1.5, 1.5, 3.0),
    shape: Shape = (256, 256, 128),
    clip: Clip = (-1000.0, 1000.0),
    interpolation: BetweenVoxels = Interpolation.LINEAR,
    antialias: Antialias = False,
    reports: Reports = None,
    labels: Labels = None,
    id_key: IdKey = None,
    root: Roots = None,
    validation_fraction: ValidationFraction = 0.1,
    strict: Strict = False,
    trust_geometry: TrustGeometry = False,
    retry_quarantined: RetryQuarantined = False,
    workers: Workers = None,
) -> None:
    """Read CTs and reports, convert to HU, resample, crop or pad, and write Parquet shards.

    A manifest has the columns `volume` (path) and `report`, and optionally scan_id, patient_id, split and a column for
    each label. Volumes that cannot be read go to STORE/quarantine.parquet with the reason. Killed and started again, it
    goes on where it stopped; run on an archive that has grown, it adds what is new.
    """
    from brgsa.volumes import Geometry
    from brgsa_platform.store.prepare import PrepareOptions
    from brgsa_platform.store.prepare import prepare as run

    options = PrepareOptions(
        geometry=Geometry(spacing, shape, clip, antialias, interpolation.value),
        validation_fraction=validation_fraction,
        strict=strict,
        trust_geometry=trust_geometry,
        retry_quarantined=retry_quarantined,
        workers=workers,
        reports=reports,
        labels=labels,
        id_key=id_key,
        roots=root or (),
    )
    typer.echo(run(source, layout.value, out, options).summary())


@app.command("info")
def store_info(
    store: StoreArgument,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of spacings and HU.")] = None,
) -> None:
    """Counts, label prevalence per split, spacing and HU."""
    from brgsa_platform.store.info import info

    counts = info(store)
    counts.print(as_json=json)
    if picture:
        counts.draw(picture)
        typer.echo(f"Picture: {picture}")


@app.command("verify")
def store_verify(
    store: StoreArgument,
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove damaged shards, so that `brgsa prepare` writes them anew.")
    ] = False,
) -> None:
    """Read every row and compare it with its checksum and with the index; exit status 1 where something is damaged."""
    from brgsa_platform.store.verify import verify

    result = verify(store, discard=discard)
    typer.echo(result.summary())
    if result.damage:
        sys.exit(1)


@app.command("show")
def store_show(
    store: StoreArgument,
    volume: Annotated[str, typer.Argument(help="A volume's id.")],
    picture: Annotated[Path | None, typer.Option(help="The PNG to write; default VOLUME.png.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Print the report too.")] = False,
) -> None:
    """A volume's row, and a picture of its middle slices."""
    from brgsa_platform.store.info import show

    typer.echo(show(store, volume, picture or Path(f"{volume}.png"), with_report=report))
