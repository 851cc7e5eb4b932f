"""Weights that others trained: read as tensors alone, and given our names."""
