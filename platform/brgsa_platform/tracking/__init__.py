"""Runs in MLflow, written, read and served: the only room that imports it."""
