"""Verbs as jobs on a cluster."""
