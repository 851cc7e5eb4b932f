"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StorePath = Annotated[str, typer.Option("--data", help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
StoreArgument = Annotated[str, typer.Argument(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, as section.key=value.", metavar="[KEY=VALUE]...")
]
Preset = Annotated[str | None, typer.Option(help="A preset's name, or the path of a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML laid over the preset.")]
