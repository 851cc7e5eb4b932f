"""What the benchmarks of one card share: their options, and where a result is kept: a file a card, beside the scripts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from brgsa.files import write_json


def options_of(parser: argparse.ArgumentParser, arms: Iterable[str]) -> argparse.Namespace:
    """The command line's options; without a GPU only `--smoke` is taken."""
    parser.add_argument("--arms", default=",".join(arms), help="names, separated by commas")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true", help="a small size on the CPU; writes no result")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --smoke runs a small size on the CPU")
    return options


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write what a benchmark has measured so far; its figures name the card."""
    benchmark, card = (
        re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in (result["benchmark"], result["figures"]["card"])
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{benchmark}-{card}.json", result)
