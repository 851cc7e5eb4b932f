"""Synthetic chest CT with reports: the demo's and the tests' data. Labels are exact, for they are what is painted."""

from brgsa.phantom.cases import COMMON, RARE, Case, Finding, sample_cases
from brgsa.phantom.render import render
from brgsa.phantom.reports import Report, write_report
from brgsa.phantom.tree import PhantomSummary, write_tree

ABNORMALITIES: tuple[str, ...] = COMMON
"""CT-RATE's abnormalities that are rendered; RARE are CT-RATE-LT's."""

__all__ = [
    "ABNORMALITIES",
    "COMMON",
    "RARE",
    "Case",
    "Finding",
    "PhantomSummary",
    "Report",
    "render",
    "sample_cases",
    "write_report",
    "write_tree",
]
