"""Figures of an evaluation, from arrays of labels and scores: NumPy and SciPy alone.

Labels are 1 (present), 0 (absent) or NaN (unknown), scores are finite floats. A volume of unknown label is left out of that
abnormality. A figure that needs both classes, or a positive, is NaN where the class is absent ("cannot be measured here"),
never 0 or 0.5. The numbers are scikit-learn's (`roc_auc_score`, `average_precision_score`, `roc_curve`,
`f1_score(average="weighted")` and so on), as the tests check.
"""

from __future__ import annotations

from brgsa.metrics.bootstrap import PAPER_RULE, Bootstrap, Drawing, Interval, IntervalRule, bootstrap, interval
from brgsa.metrics.ranking import (
    AT_THRESHOLD,
    RANKING,
    RocCurve,
    at_threshold,
    auprc,
    auroc,
    corner_threshold,
    roc_curve,
    sensitivity_at,
)
from brgsa.metrics.resampling import SENSITIVITY, SPECIFICITY

__all__ = [
    "AT_THRESHOLD",
    "PAPER_RULE",
    "RANKING",
    "SENSITIVITY",
    "SPECIFICITY",
    "Bootstrap",
    "Drawing",
    "Interval",
    "IntervalRule",
    "RocCurve",
    "at_threshold",
    "auprc",
    "auroc",
    "bootstrap",
    "corner_threshold",
    "interval",
    "roc_curve",
    "sensitivity_at",
]
