"""Which code runs."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path


@functools.lru_cache
def git_commit() -> str | None:
    """The commit of the running code: `BRGSA_COMMIT`, as images set it, else of the checkout; None where neither tells."""
    given = os.environ.get("BRGSA_COMMIT")
    if given:
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
