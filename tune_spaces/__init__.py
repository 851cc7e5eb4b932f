"""Search spaces as data: one YAML file a space, the loader that checks them, and the conditions between their fields.

docs/spaces.md explains how to write a file; `schema.json` completes its keys in an editor.
"""

from tune_spaces.conditions import active, corners
from tune_spaces.loader import load, names
from tune_spaces.parameter import Parameter, scalar

__all__ = ["Parameter", "active", "corners", "load", "names", "scalar"]
