"""`brgsa doctor`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def doctor(
    ray: Annotated[
        str | None, typer.Option(help="A cluster, HOST:6379; default RAY_ADDRESS, else this machine.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A store: a folder or an s3:// URL.")] = None,
    out: Annotated[str, typer.Option(help="Where runs are to lie.")] = "runs",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this machine, or every node of a cluster; each finding with its mend. Exit status 1 where something fails."""
    from brgsa_platform.doctor import doctor as work
    from brgsa_platform.runtime.progress import progress

    if ray:
        os.environ["RAY_ADDRESS"] = ray
    if not os.environ.get("RAY_ADDRESS"):
        print("No --ray and no RAY_ADDRESS: this machine alone, with a Ray session started for it.", file=sys.stderr)
    with progress(work.CHECKS + (data is not None), "examine") as advance:
        found = work.examine(data, out, on_step=lambda name: advance(note=name))
    if json:
        import dataclasses
        from json import dumps

        typer.echo(dumps([dataclasses.asdict(one) for one in found], indent=1))
    else:
        work.print_table(found)
    if any(one.state == "fail" for one in found):
        sys.exit(1)
