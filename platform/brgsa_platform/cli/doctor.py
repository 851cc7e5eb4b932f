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
    out: Annotated[str, typer.Option(help="The folder or s3:// URL for runs.")] = "runs",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this machine, or every node of a cluster, with a mend for what is wrong; exit status 1 where something fails."""
    import dataclasses
    from json import dumps

    from brgsa_platform.doctor.doctor import CHECKS, examine, print_findings
    from brgsa_platform.runtime.progress import progress

    if ray:
        os.environ["RAY_ADDRESS"] = ray
    if not os.environ.get("RAY_ADDRESS"):
        print("No --ray and no RAY_ADDRESS: this machine alone, with a Ray session started for it.", file=sys.stderr)
    with progress(CHECKS + (data is not None), "examine") as advance:
        findings = examine(data, out, on_step=lambda name: advance(note=name))
    if json:
        typer.echo(dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print_findings(findings)
    if any(finding.state == "fail" for finding in findings):
        sys.exit(1)
