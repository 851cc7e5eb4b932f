"""Where a benchmark's result on one card is kept: a file a card, committed beside the scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from brgsa.files import write_json


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write what a benchmark has measured so far; its figures name the card."""
    benchmark, card = (
        re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in (result["benchmark"], result["figures"]["card"])
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{benchmark}-{card}.json", result)
