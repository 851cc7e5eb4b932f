"""Synthetic chest CT with reports, for the demo and the tests. Its labels are exact: they are what is painted."""

from brgsa.phantom.cases import COMMON, RARE, Case, Finding, sample_cases
from brgsa.phantom.render import render
from brgsa.phantom.reports import Report, write_report
from brgsa.phantom.tree import PhantomSummary, is_phantom, write_tree

ABNORMALITIES: tuple[str, ...] = COMMON
"""CT-RATE's abnormalities that are rendered; RARE holds CT-RATE-LT's."""

__all__ = [
    "ABNORMALITIES",
    "COMMON",
    "RARE",
    "Case",
    "Finding",
    "PhantomSummary",
    "Report",
    "is_phantom",
    "render",
    "sample_cases",
    "write_report",
    "write_tree",
]
