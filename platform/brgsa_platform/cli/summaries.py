"""Verbs about summaries: write them, and see how true they are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brgsa_platform.cli.options import StoreArgument

app = typer.Typer(help="How true a store's summaries are.", no_args_is_help=True, rich_markup_mode=None)


class Backend(StrEnum):
    """What reads the reports."""

    RULES = "rules"
    OPENAI = "openai"
    TRANSFORMERS = "transformers"
    HYBRID = "hybrid"
    RAY_LLM = "ray-llm"


class Flagged(StrEnum):
    """What becomes of a language model's statements without support in the report."""

    REPLACE = "replace"
    DROP = "drop"
    KEEP = "keep"


Styles = Annotated[list[str], typer.Option(help="A summary style, or a YAML file of your own. May be repeated.")]
BackendName = Annotated[Backend | None, typer.Option(help="What reads the reports, in place of the style's own.")]
Model = Annotated[str | None, typer.Option(help="Language model: its name at the endpoint, or a folder.")]
Endpoint = Annotated[str | None, typer.Option(help="OpenAI-compatible URL, to its version; or BRGSA_LLM_ENDPOINT.")]
KeyFile = Annotated[Path | None, typer.Option(help="File with the endpoint's key; or BRGSA_LLM_KEY.")]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Reports may be sent to another machine.")]
Mask = Annotated[
    bool | None, typer.Option(help="Mask names, dates and numbers before sending; default for another machine.")
]
Concurrency = Annotated[int, typer.Option(help="Requests at a time, or actors of a local model.", min=1)]
Rate = Annotated[float | None, typer.Option(help="Most requests a minute.", min=0.01)]
Timeout = Annotated[float, typer.Option(help="Seconds for one answer.", min=0.1)]
Patience = Annotated[float, typer.Option(help="Seconds to try again while the endpoint is away.", min=0)]
AnswerTokens = Annotated[int, typer.Option(help="Longest answer.", min=1)]
Price = Annotated[tuple[float, float], typer.Option(help="Cost of a million tokens sent, and answered.")]
MaxCost = Annotated[float | None, typer.Option(help="Stop before more is spent; needs --price.", min=0)]
Cache = Annotated[str | None, typer.Option(help="Where answers are kept, folder or URL; default in the store.")]
FlaggedPolicy = Annotated[Flagged, typer.Option(help="Statements without support in the report.")]
Unread = Annotated[
    bool, typer.Option("--unread", help="Take the model's word for reports in other languages; nothing checks it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print reports, tokens, cost, three examples; send nothing.")]


def summarize(
    store: StoreArgument,
    style: Styles,
    backend: BackendName = None,
    model: Model = None,
    endpoint: Endpoint = None,
    api_key_file: KeyFile = None,
    allow_remote: AllowRemote = False,
    mask: Mask = None,
    concurrency: Concurrency = 8,
    rate: Rate = None,
    timeout: Timeout = 120.0,
    patience: Patience = 300.0,
    answer_tokens: AnswerTokens = 800,
    price: Price = (0.0, 0.0),
    max_cost: MaxCost = None,
    cache: Cache = None,
    flagged: FlaggedPolicy = Flagged.REPLACE,
    unread: Unread = False,
    dry_run: DryRun = False,
) -> None:
    """Add a summary of each report to the store in each style.

    Styles: report, findings, impression, positives, positives+negatives, by-anatomy, short. Rules write them; --backend asks a
    language model instead, whose statements are held to the report.
    """
    from brgsa_platform.summaries import summarize as room
    from brgsa_platform.summaries.options import LlmOptions

    options = LlmOptions(
        endpoint=endpoint,
        key_file=api_key_file,
        allow_remote=allow_remote,
        mask=mask,
        concurrency=concurrency,
        rate=rate,
        timeout=timeout,
        patience=patience,
        answer_tokens=answer_tokens,
        price=price,
        max_cost=max_cost,
        cache=cache,
        flagged=flagged.value,
        unread=unread,
    )
    of_backend = backend.value if backend else None
    if dry_run:
        typer.echo(room.dry_run(store, style, options, backend=of_backend, model=model))
    else:
        typer.echo(room.summarize(store, style, options, backend=of_backend, model=model).summary())


@app.command("fidelity")
def summaries_fidelity(
    store: StoreArgument,
    style: Annotated[
        list[str] | None, typer.Option(help="A style's column or YAML file; default all. May be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest text that the text tower reads.", min=4)] = 97,
    text_model: Annotated[str, typer.Option(help="Whose tokens count: small, or a Hugging Face model.")] = "small",
    worst: Annotated[Path | None, typer.Option(help="Local CSV of the worst summaries by volume id.")] = None,
) -> None:
    """What summaries lose, invent and turn round, by the archive's labels or the rules; the table goes to MLflow."""
    from brgsa.config import TextConfig
    from brgsa_platform.summaries.fidelity import store_fidelity

    text = TextConfig(name=text_model, max_tokens=max_tokens)
    store_fidelity(store, style or (), text=text, worst_file=worst).print()


@app.command("review")
def summaries_review(
    store: StoreArgument,
    style: Annotated[str, typer.Option(help="The style's column.")],
    out: Annotated[Path, typer.Option(help="Local folder for review.csv and review.html.")] = Path("review"),
    count: Annotated[int, typer.Option(help="Reports.", min=1)] = 60,
    seed: Annotated[int, typer.Option(help="The same seed draws the same reports.")] = 0,
    verdicts: Annotated[Path | None, typer.Option(help="A filled review.csv: print the agreement.")] = None,
) -> None:
    """A sample of reports for a radiologist as CSV and as a page; or, with --verdicts, how far the summaries agree."""
    from brgsa_platform.summaries.review import PAGE, SHEET, make_review, read_review

    if verdicts is not None:
        read_review(store, style, verdicts).print()
        return
    cases = make_review(store, style, out, count, seed)
    typer.echo(
        f"{len(cases)} reports in {out / PAGE} and {out / SHEET}; they hold patients' data. Next: fill one of them, then "
        f"brgsa summaries review {store} --style {style} --verdicts {SHEET}"
    )


class Source(StrEnum):
    """What labels are read from."""

    REPORTS = "reports"


def labels(
    store: StoreArgument,
    source: Annotated[Source, typer.Option("--from", help="What to read them from.")],
    style: Annotated[str | None, typer.Option(help="A summary style's column to read instead of the reports.")] = None,
    names: Annotated[str, typer.Option(help="default (33), all, ct-rate, ct-rate-lt or rad-chestct.")] = "default",
) -> None:
    """Read each report's abnormalities into the store: present, absent, uncertain, not mentioned.

    A store without labels is then validated, searched, supervised and evaluated by these; their source stands in every table.
    """
    from brgsa_platform.summaries.labels import labels_from_reports

    labels_from_reports(store, style, names).print()
