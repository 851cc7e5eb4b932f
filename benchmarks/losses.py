"""What each loss brings: the demo's model on one store of the phantom, the same epochs, several training seeds.

    python benchmarks/losses.py [--scans N] [--epochs N] [--width W] [--seeds S] [--losses NAME …] [--out DIR] [--json]

AUROC on the test split, as a mean over the seeds with their standard deviation: of the common abnormalities, of the rare ones,
and of every second one (`held out`), on which `labels-half` is not supervised. All arms see the same volumes in the same order
for a seed; the peer is the paper's loss. `--out` keeps the store and what was measured: the same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from arms import NAMES, Budget, Comparison, command

PEER = "info_nce"
LEARNED = ["loss.learn_temperature=true"]
SIGMOID = ["loss.contrast=sigmoid", "loss.temperature=0.1", "loss.learn_bias=true", *LEARNED]
OF_THE_BATCH = "loss.bias=-2.7"  # -log(16 - 1)
LABELS = ["loss.supervised=1"]
# Over the preset `demo`: InfoNCE at temperature 0.05, equal texts ignored.
LOSSES: dict[str, list[str]] = {
    PEER: [],
    "same text negatives": ["loss.same_text=negatives"],
    "same text positives": ["loss.same_text=positives"],
    "learned temperature": LEARNED,
    "sigmoid": [*SIGMOID, OF_THE_BATCH],
    "sigmoid, bias -10": [*SIGMOID, "loss.bias=-10"],  # SigLIP's
    "labels": LABELS,
    "labels by rules": [*LABELS, "loss.labels=rules"],
    "labels-half": [*LABELS, f"loss.abnormalities={json.dumps(NAMES[0::2])}"],
}
COMPARISON = Comparison("losses", "loss", LOSSES, PEER, ("common", "rare", "held out"))


def main(arguments: Sequence[str] | None = None) -> int:
    return command(COMPARISON, (__doc__ or "").splitlines()[0], Budget(800, 6, 16), "--losses", arguments)


if __name__ == "__main__":
    sys.exit(main())
