"""Checks of this machine, or of every node of a cluster, and what to do about what is wrong."""
