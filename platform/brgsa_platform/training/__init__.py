"""Batches, the loop and its checkpoints."""
