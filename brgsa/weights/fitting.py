"""Tensors that have our names, put into a module: each is checked, and what was used, fitted, missing or left over is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brgsa.errors import UserError

Shape = tuple[int, ...]


@dataclass
class Fitted:
    """What became of a file of weights.

    Attributes:
        path: the file.
        used: number of its tensors that were taken.
        fitted: in words, what was changed to fit.
        missing: our weights that the file lacks; they stay as they were initialised.
        unused: names in the file that nothing here has.
    """

    path: Path
    used: int = 0
    fitted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        parts = [f"{self.used} tensors of {self.path} are used"]
        lists = {"fitted": self.fitted, "missing": self.missing, "unused": self.unused}
        parts += [f"{what}: {_some(names)}" for what, names in lists.items() if names]
        return "; ".join(parts) + "."


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def put(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    report: Fitted,
    may_lack: Callable[[str], bool] = lambda name: False,
) -> Fitted:
    """Copy tensors into the weights and buffers of a module that bear the same names.

    Args:
        tensors: by our names; names that the module does not have are told as unused.
        report: of the file, to which this adds.
        may_lack: which of our weights the file need not have.

    Raises:
        UserError: a tensor has another shape ("weights-mismatch"), a weight is missing ("weights-missing"), or a number is not
            finite ("weights-not-finite"). The module is unchanged then.
    """
    ours = module.state_dict()
    for name in ours.keys() & tensors.keys():
        check_shape(report.path, name, tuple(tensors[name].shape), tuple(ours[name].shape))
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise UserError(
                f"{report.path} holds numbers in {name} that are not finite: use another file.",
                code="weights-not-finite",
                field=name,
            )
    report.missing += [name for name in ours if name not in tensors]
    lacking = [name for name in report.missing if not may_lack(name)]
    if lacking:
        raise UserError(
            f"{report.path} is of another architecture: it has no {_some(lacking)}; configure the tower as the file's is, or "
            "use another file.",
            code="weights-missing",
            field=lacking[0],
        )
    report.unused += [name for name in tensors if name not in ours]
    report.used += len(ours.keys() & tensors.keys())
    for name in ours.keys() & tensors.keys():
        ours[name].copy_(tensors[name])  # a state dict's tensors are the module's own
    return report


def check_shape(path: Path, name: str, have: Shape, want: Shape) -> None:
    """Refuse a tensor of another shape.

    Raises:
        UserError: "weights-mismatch"; its value is the shape in the file.
    """
    if have != want:
        raise UserError(
            f"{path} is of another size: {name} is {have} there and {want} here; configure the tower as the file's is, or use "
            "another file.",
            code="weights-mismatch",
            field=name,
            value=have,
        )


def too_deep(path: Path, name: str) -> UserError:
    """Why a weight of a block that the tower does not have is refused."""
    return UserError(
        f"{path} is of a deeper tower: nothing here has {name}; configure the tower as the file's is.",
        code="weights-deeper",
        field=name,
    )


def another_architecture(path: Path, wanted: str) -> UserError:
    """Why a file's names say nothing to us."""
    return UserError(
        f"{path} holds no {wanted}: use a file of that kind, or configure the tower that the file is of.",
        code="weights-of-another-architecture",
        field=str(path),
    )
