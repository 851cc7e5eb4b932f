"""Verbs of a model: train it, measure it, ask it about scans, give it to others."""
