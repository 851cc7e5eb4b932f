"""Summaries of chest CT reports: a rule-based reader of 33 abnormalities, and the styles that are written from its findings."""

from brgsa.summaries.reader import (
    Finding,
    Mention,
    Status,
    read_findings,
    read_findings_detailed,
    read_many,
    read_mentions,
    understood,
)
from brgsa.summaries.styles import NOTHING_FOUND, STYLES, statement, summarize, summarize_many

__all__ = [
    "NOTHING_FOUND",
    "STYLES",
    "Finding",
    "Mention",
    "Status",
    "read_findings",
    "read_findings_detailed",
    "read_many",
    "read_mentions",
    "statement",
    "summarize",
    "summarize_many",
    "understood",
]
