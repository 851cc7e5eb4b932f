"""16-bit floats on a GPU: autocast and the gradient scaler. A precision is "32", "16", "bf16" or "auto".

"auto" is bfloat16 on a GPU that computes in it, and float16 on an older one. A CPU always computes in float32.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model computes on a device."""
    dtype = _autocast_type(device, precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """The scaler that float16 gradients need; in any other type it passes them on unchanged."""
    return torch.amp.GradScaler(device.type, enabled=_autocast_type(device, precision) == torch.float16)


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Go on with a scaler's saved state.

    A run may go on on another kind of device. A run that had no scaler has an empty state, and the scaler then begins as
    a new one does; a state that no scaler needs is left aside.
    """
    if state:
        scaler.load_state_dict(state)


def _autocast_type(device: torch.device, precision: str) -> torch.dtype | None:
    # CPUs without native 16-bit arithmetic are two hundred times slower in it: a CPU always trains in 32.
    if device.type != "cuda" or precision == "32":
        return None
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if precision == "16" else torch.bfloat16
