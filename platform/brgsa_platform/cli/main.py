"""The `brgsa` command: one verb a module, no logic of its own.

Imports are inside the verbs: `brgsa --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brgsa.errors import UserError
from brgsa_platform.cli import doctor as cli_doctor
from brgsa_platform.cli import jobs as cli_jobs
from brgsa_platform.cli import runs as cli_runs
from brgsa_platform.cli import ui as cli_ui

app = typer.Typer(
    help="Zero-shot diagnosis from 3D CT: from scans and reports to a table of diagnoses in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store_app = typer.Typer(
    help="What a store holds, whether it is whole, what a volume looks like.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(store_app, name="store")
app.add_typer(cli_runs.app, name="runs")
app.add_typer(cli_jobs.app, name="jobs")

INTERRUPTED = 130  # exit status


class Layout(StrEnum):
    CT_RATE = "ct-rate"
    RAD_CHESTCT = "rad-chestct"
    DICOM = "dicom"
    MANIFEST = "manifest"


class Interpolation(StrEnum):
    LINEAR = "linear"
    NEAREST = "nearest"
    CUBIC = "cubic"


class Protocol(StrEnum):
    VALIDATION = "validation"
    PAPER = "paper"


StorePath = Annotated[str, typer.Option("--data", help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
StoreArgument = Annotated[str, typer.Argument(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, as section.key=value.", metavar="[KEY=VALUE]...")
]
Preset = Annotated[str | None, typer.Option(help="A preset's name, or the path of a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML laid over the preset.")]


@app.command()
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
    _say(f"{made.scans} scans, {made.volumes} volumes in {out}. Next: brgsa prepare {out} --layout ct-rate --out STORE")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="An archive's folder, or a manifest: a CSV or Parquet file.")],
    layout: Annotated[Layout, typer.Option(help="How the source is laid out.")],
    out: Annotated[str, typer.Option(help="The store to write or to add to: a folder or an s3:// URL.")],
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Voxel size x y z in mm.")] = (1.5, 1.5, 3.0),
    shape: Annotated[tuple[int, int, int], typer.Option(help="Voxels x y z after crop or pad.")] = (256, 256, 128),
    clip: Annotated[tuple[float, float], typer.Option(help="Lowest and highest HU kept.")] = (-1000.0, 1000.0),
    interpolation: Annotated[Interpolation, typer.Option(help="Between voxels.")] = Interpolation.LINEAR,
    antialias: Annotated[bool, typer.Option(help="Smooth before downsampling; for coarse grids.")] = False,
    reports: Annotated[Path | None, typer.Option(help="Reports by volume or scan id: CSV, Parquet or JSON.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels by volume or scan id: CSV, Parquet or JSON.")] = None,
    id_key: Annotated[
        Path | None,
        typer.Option(help="dicom: key of the hashes for identifiers; default BRGSA_ID_KEY or ~/.config/brgsa/id-key."),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="manifest: folder or s3:// URL that it may lead to, besides its own folder. May be repeated."
        ),
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of training patients set aside.")] = 0.1,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse volumes whose header, table and voxels disagree.")
    ] = False,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try again what was refused before.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Volumes read at a time; default one a CPU.", min=1)] = None,
) -> None:
    """Read CTs and reports, convert to HU, resample, crop or pad, and write Parquet shards.

    A manifest has the columns `volume` (path) and `report`, and optionally scan_id, patient_id, split and one 0/1 column a
    label. Volumes that cannot be read go to STORE/quarantine.parquet with the reason. Killed, it goes on where it stopped;
    run on a grown archive, it adds what is new.
    """
    from brgsa.volumes import Geometry
    from brgsa_platform.store.prepare import prepare as run

    geometry = Geometry(spacing, shape, clip, antialias, interpolation.value)
    done = run(
        source,
        layout.value,
        out,
        geometry=geometry,
        validation_fraction=validation_fraction,
        strict=strict,
        retry_quarantined=retry_quarantined,
        workers=workers,
        reports=reports,
        labels=labels,
        id_key=id_key,
        roots=root or (),
    )
    _say(done.summary())


@store_app.command("info")
def store_info(
    store: StoreArgument,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of spacings and HU.")] = None,
) -> None:
    """Counts, label prevalence per split, spacing and HU."""
    from brgsa_platform.store.info import info

    found = info(store)
    found.print(as_json=json)
    if picture:
        found.draw(picture)
        _say(f"Picture: {picture}")


@store_app.command("verify")
def store_verify(
    store: StoreArgument,
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove damaged shards, so that `brgsa prepare` writes them anew.")
    ] = False,
) -> None:
    """Read every row and compare it with its checksum and with the index; exit status 1 where something is damaged."""
    from brgsa_platform.store.verify import verify

    found = verify(store, discard=discard)
    _say(found.summary())
    if found.damage:
        sys.exit(1)


@store_app.command("show")
def store_show(
    store: StoreArgument,
    volume: Annotated[str, typer.Argument(help="A volume's id.")],
    picture: Annotated[Path | None, typer.Option(help="The PNG to write; default VOLUME.png.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Print the report too.")] = False,
) -> None:
    """A volume's row, and a picture of its middle slices."""
    from brgsa_platform.store.info import show

    _say(show(store, volume, picture or Path(f"{volume}.png"), with_report=report))


@app.command()
def summarize(
    store: StoreArgument,
    style: Annotated[list[str], typer.Option(help="A summary style; may be given several times.")],
) -> None:
    """Add a summary of each report to the store, a column a style: report, findings, positives, positives+negatives."""
    from brgsa_platform.summaries.summarize import summarize as run

    _say(run(store, style).summary())


@app.command()
def train(
    data: StorePath,
    preset: Preset = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/PRESET-HASH.")] = None,
    settings: Overrides = None,
) -> None:
    """Train with Ray Train on batches from Ray Data. Killed, it goes on from its last checkpoint when started again."""
    from brgsa_platform.config import load_config
    from brgsa_platform.training.driver import train as run

    done = run(data, load_config(preset, config, settings or []), out=out, preset=preset)
    score = f", validation AUROC {done.best['val/auroc']:.3f}" if "val/auroc" in done.best else ""
    _say(
        f"{done.out}: best epoch {done.best['epoch']} of {len(done.history)}{score}. "
        f"Next: brgsa evaluate {_short(done.out)} --data {data}"
    )


@app.command()
def tune(
    data: Annotated[
        str | None, typer.Option(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="A search space by name, or the path of a YAML file; several combine (docs/spaces.md)."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all; default 16 where nothing else ends the search.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="End after so much wall clock.")] = None,
    epochs: Annotated[int | None, typer.Option(help="End after so many epochs of all trials together.")] = None,
    patience: Annotated[int | None, typer.Option(help="End after so many trials without a better one.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, gp, cmaes, random, qmc, grid or nsga2.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="asha, median, hyperband or none.")] = "none",
    goal: Annotated[
        list[str] | None, typer.Option(help="auroc (default), common or rare; two for a Pareto set.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with the search of this name; with --data and --space, begin it if need be."),
    ] = None,
    warm_from: Annotated[
        list[str] | None,
        typer.Option(help="Learn from another search, a run in MLflow, or all finished trainings there: mlflow."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Begin with a point: field=value,field=value. May be repeated.")
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option(help="The search's name, also of its folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of searches.")] = Path("searches"),
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    concurrent: Annotated[int | None, typer.Option(help="Trials at a time; default what the cluster holds.")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs of each training process; a fraction lets trials share one.")
    ] = None,
    checkpoints: Annotated[str, typer.Option(help="Trials whose checkpoint MLflow gets: all, best or none.")] = "all",
    storage: Annotated[
        str | None, typer.Option(help="Database URL of the study; default a file in its folder.")
    ] = None,
    settings: Overrides = None,
) -> None:
    """Search with Tune and Optuna; each trial is a child run of the search in MLflow. Killed, it goes on with --resume."""
    from brgsa_platform.config import load_config
    from brgsa_platform.search.driver import SearchOptions
    from brgsa_platform.search.driver import resume as go_on
    from brgsa_platform.search.driver import tune as run
    from brgsa_platform.search.points import parse_points

    ends = trials or hours or epochs or patience
    options = SearchOptions(
        trials=trials if ends or trials == 0 else 16,
        hours=hours,
        epochs=epochs,
        patience=patience,
        concurrent=concurrent,
        gpu_share=gpus_per_trial,
        checkpoints=checkpoints,
        points=parse_points(point or ()),
        warm_from=warm_from or (),
    )
    if resume and not (data and space):
        _say(go_on(resume, options, out=out, spaces=space or ()).summary())
        return
    if not data or not space:
        raise UserError("A search needs --data STORE and --space NAME, or --resume NAME to go on with one.")
    done = run(
        data,
        load_config(preset, config, settings or []),
        space,
        options,
        name=resume or name,
        out=out,
        goals=goal or ("auroc",),
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        storage=storage,
        preset=preset,
        go_on=resume is not None,
    )
    _say(done.summary())


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")],
    data: StorePath,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    pairing: Annotated[str, typer.Option(help="mean, v.t, v.t', v'.t or v'.t'.")] = "mean",
    protocol: Annotated[Protocol, typer.Option(help="Where the threshold comes from.")] = Protocol.VALIDATION,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 5000,
    out: Annotated[Path | None, typer.Option(help="Folder for tables; default the checkpoint's.")] = None,
) -> None:
    """Score a split zero-shot: a table per abnormality with 95 % intervals, as CSV and JSON and in MLflow."""
    from brgsa_platform.evaluation.evaluate import evaluate as run
    from brgsa_platform.training import checkpoints

    done = run(
        checkpoints.resolve(checkpoint),
        data,
        split=split,
        pairing=pairing,
        protocol=protocol.value,
        resamples=resamples,
        out=out,
    )
    done.print()


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")],
    scan: Annotated[
        Path, typer.Argument(help="One CT in HU: NIfTI, NRRD, MetaImage, .npz, or the folder of a DICOM series.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="A text to score; default every label's prompt.")] = None,
    pairing: Annotated[str, typer.Option(help="mean, v.t, v.t', v'.t or v'.t'.")] = "mean",
    metadata: Annotated[
        Path | None, typer.Option(help="CT-RATE's metadata CSV, for a file of its first release.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of what the model sees.")] = None,
) -> None:
    """Score one CT: a ranked table of prompts."""
    from brgsa_platform.serving.predict import predict as run
    from brgsa_platform.training import checkpoints

    done = run(checkpoints.resolve(checkpoint), scan, prompt, pairing=pairing, metadata=metadata, picture=picture)
    done.print(as_json=json)


app.command("ui")(cli_ui.ui)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller: fewer scans and epochs.")] = False,
    seed: Annotated[int, typer.Option(help="Of phantom, training and search.")] = 0,
) -> None:
    """The whole way on synthetic CT: phantom, prepare, summarize, train, tune, evaluate; one table side by side."""
    from brgsa_platform.demo import demo as run

    run(out, quick=quick, seed=seed)


app.command()(cli_jobs.submit)
app.command()(cli_doctor.doctor)


def _say(line: str) -> None:
    typer.echo(line)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> None:
    """Run a verb; exit 2 with one sentence for a user's mistake, 1 for a failure, 130 when interrupted."""
    try:
        # Typer turns Ctrl-C into a status that it returns.
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "interrupted; what is finished is kept, the same command goes on (tune: --resume NAME)",
            INTERRUPTED,
        )
    except Exception as error:
        click_exit = getattr(error, "exit_code", None)
        if click_exit is not None and hasattr(error, "show"):
            error.show()
            sys.exit(click_exit)
        if os.environ.get("BRGSA_DEBUG"):
            raise
        # Ray's errors carry whole tracebacks; their last line says what went wrong.
        said = str(error).strip().splitlines() or [""]
        _fail(f"failed: {type(error).__name__}: {said[-1].strip()} (BRGSA_DEBUG=1 shows where)", 1)


def _fail(sentence: str, status: int) -> None:
    print(f"brgsa: {sentence}", file=sys.stderr)
    sys.exit(status)
