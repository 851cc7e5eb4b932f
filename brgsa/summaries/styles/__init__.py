"""Summary styles: data (`*.yaml` here), and what writes a summary in one from what was read."""

from brgsa.summaries.styles.style import BACKENDS, SHIPPED, Style, is_file, load_style
from brgsa.summaries.styles.writing import NOTHING_FOUND, statement, summarize, summarize_many, write

STYLES = SHIPPED

__all__ = [
    "BACKENDS",
    "NOTHING_FOUND",
    "STYLES",
    "Style",
    "is_file",
    "load_style",
    "statement",
    "summarize",
    "summarize_many",
    "write",
]
