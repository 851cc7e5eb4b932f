"""A checkpoint as MLflow loads it: a table of scans and prompts in, a table of scores out. Knows neither Ray nor MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brgsa.errors import UserError
from brgsa_platform.serving.scorer import Scorer

# Column → type, as `tracking.registry.ServedModel` has them.
INPUTS = {"scan": "string", "prompts?": "[string]"}
OUTPUTS = {
    "scan": "string",
    "prompt": "string",
    "score": "double",
    "percentile": "double",
    "probability": "double",
    "no_probability": "string",
    "supervised": "boolean",
    "cautions": "string",
    "outside": "string",
    "refused": "string",
}


class ScanModel:
    """Scores scans that lie on the disk of the machine where it runs."""

    def __init__(self, checkpoint: Path | str) -> None:
        self._scorer = Scorer(checkpoint)

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row a scan and prompt; a scan or prompt that cannot be used has one row that says why.

        Args:
            table: `scan`, the path of a CT file or of a DICOM series' folder; `prompts`, a list of texts, where it is missing
                those of the checkpoint's labels.

        Returns:
            The columns of `OUTPUTS`. `percentile` is the share (0 to 1) of the training's validation scans that score lower
            for the prompt, `probability` what an evaluation fitted to its scores; NaN where they are not known.
        """
        rows = [row for given in table.to_dict("records") for row in self._rows(given)]
        return pd.DataFrame(rows, columns=list(OUTPUTS))

    def _rows(self, given: dict[Any, Any]) -> Iterator[dict[str, Any]]:
        blank = {
            "scan": given["scan"], "prompt": "", "score": np.nan, "percentile": np.nan, "probability": np.nan,
            "no_probability": "", "supervised": False, "cautions": "", "outside": "", "refused": "",
        }  # fmt: skip
        prompts = given.get("prompts")
        asked = [str(text) for text in prompts] if isinstance(prompts, list | tuple | np.ndarray) else []
        try:
            scorer = self._scorer.asking(asked) if asked else self._scorer
            seen = scorer.read(Path(given["scan"]))
            ranked = scorer.score(seen)
        except UserError as error:
            yield {**blank, "refused": str(error)}
            return
        told = {"cautions": " ".join(seen.cautions), "outside": "; ".join(seen.outside)}
        for row in ranked:
            known = {name: value for name, value in row._asdict().items() if value is not None}
            yield {**blank, **told, **known}


def _load_pyfunc(path: str) -> ScanModel:
    """What MLflow calls to load the model."""
    return ScanModel(path)
