"""Summaries of chest CT reports: a rule-based reader, the styles in which its findings are written, and what holds a language
model's statements to the report."""

from brgsa.summaries.hierarchy import canonical, known_names
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
from brgsa.summaries.styles import NOTHING_FOUND, STYLES, Style, load_style, statement, summarize, summarize_many

__all__ = [
    "NOTHING_FOUND",
    "STYLES",
    "Finding",
    "Mention",
    "Status",
    "Style",
    "canonical",
    "known_names",
    "load_style",
    "read_findings",
    "read_findings_detailed",
    "read_many",
    "read_mentions",
    "statement",
    "summarize",
    "summarize_many",
    "understood",
]
