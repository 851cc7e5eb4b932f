"""torch.compile where it can work: it needs a C compiler."""

from __future__ import annotations

import os
import shutil

from torch import nn


def has_compiler() -> bool:
    """Whether this process finds a C compiler, as torch's compiler needs for its kernels; a slim container has none."""
    return any(shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)


def compile_tower(tower: nn.Module) -> bool:
    """Have torch compile a vision tower at its first use, a transformer block by block; weights keep their names.

    Returns:
        False where there is no C compiler; the tower then stays as it is.
    """
    if not has_compiler():
        return False
    blocks = getattr(tower, "blocks", None)
    # A transformer's blocks are alike, so that one of them is compiled for all.
    for module in [tower] if blocks is None else blocks:
        module.compile()
    return True
