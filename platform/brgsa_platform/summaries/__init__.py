"""Reports to summaries, over a whole store."""
