"""A checkpoint in other hands."""
