"""BrgSA: Bridged Semantic Alignment for zero-shot diagnosis from 3D CT, as a plain PyTorch library.

A name is imported when it is first used, so that `import brgsa` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BrgSA": "brgsa.model",
    "Embeddings": "brgsa.model",
    "KnowledgeBank": "brgsa.bank",
    "ModelConfig": "brgsa.config",
    "LossConfig": "brgsa.config",
    "UserError": "brgsa.errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'brgsa' has no attribute {name!r}")
