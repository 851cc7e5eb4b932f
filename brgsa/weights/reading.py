"""Files of weights, read as tensors alone: whatever else a file holds is left out, and none of it ever runs.

A training's file often holds its configuration beside the weights, as pickled objects of a library of its own. Torch's
`weights_only` unpickler refuses such a file unless each of their classes is allowed by name. Here every such name stands for an
empty dict, so that the tensors are read and the library is neither needed nor imported.
"""

from __future__ import annotations

import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING  # a pickle names modules as Python 2 did
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brgsa.errors import UserError

# What a file of weights may name of Python's own library: kinds of data, nothing that acts.
DATA_MODULES = frozenset({"collections", "datetime", "enum", "argparse", "pathlib", "types", "typing"})
DATA_BUILTINS = frozenset(
    "bool bytes complex dict float frozenset int list object set slice str tuple".split()  # noqa: SIM905 (a list of names)
)
LONGEST_HEADER = 10**8  # bytes, of safetensors
# Where a folder keeps its weights: ours and Hugging Face's.
IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
# Where a training's file keeps them.
NESTED = ("state_dict", "model_state_dict", "model", "network_weights", "teacher", "student")


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, on the CPU.

    Attributes:
        path: the file.
        tensors: by the name that they have there.
        skipped: names of what else the file holds, and of the pickled classes that were not made.
    """

    path: Path
    tensors: dict[str, Tensor]
    skipped: list[str]

    def without_prefix(self, *prefixes: str) -> Weights:
        """The same with the first of these prefixes that any name has; names without it are skipped."""
        for prefix in prefixes:
            inside = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
            if inside:
                left = [name for name in self.tensors if not name.startswith(prefix)]
                return Weights(self.path, inside, [*self.skipped, *left])
        return self


def read_weights(path: Path | str) -> Weights:
    """The tensors of a safetensors file, of a file that `torch.save` wrote, or of a folder that holds one of these.

    Raises:
        UserError: there is no such file ("no-weights"), it is damaged ("weights-damaged"), it asks for code of Python's own
            library ("weights-with-code"), or it holds no tensors ("no-tensors").
    """
    path = Path(path)
    file = next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path)
    if not file.is_file():
        raise UserError(
            f"{path} is neither a file of weights nor a folder with {' or '.join(IN_A_FOLDER)}: correct the path.",
            code="no-weights",
            field=str(path),
        )
    tree, classes = (_safetensors(file), []) if file.suffix == ".safetensors" else _pickled(file)
    tensors, beside = _tensors_of(tree)
    if not tensors:
        raise UserError(f"{file} holds no tensors: give a file of weights.", code="no-tensors", field=str(file))
    return Weights(file, tensors, [*beside, *classes])


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise _damaged(file) from error
    return tensors


def _pickled(file: Path) -> tuple[Any, list[str]]:
    """What torch saved in a file, and the names of classes whose objects were left out."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except ValueError:
        names = []  # torch's format before 1.6: read below, if it holds nothing but tensors
    except (OSError, RuntimeError, EOFError, KeyError, IndexError, pickle.UnpicklingError) as error:
        raise _damaged(file) from error
    acting = [name for name in names if not _is_data(name)]
    if acting:
        raise _with_code(file, acting[0])
    try:
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise (_with_code(file, refused[1]) if refused else _damaged(file)) from error
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _damaged(file) from error
    return tree, names


def _is_data(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    module = IMPORT_MAPPING.get(module, module)
    if module == "builtins":
        return kind in DATA_BUILTINS
    top = module.partition(".")[0]
    return top in DATA_MODULES or top not in sys.stdlib_module_names


def _stand_in(name: str) -> type:
    """A class whose objects are empty dicts, which take whatever a pickle puts into them and do nothing."""
    return type(name, (), {"__new__": lambda cls, *args, **named: OrderedDict()})


def _tensors_of(tree: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, and what lies beside them, of a state dict or of a dict that holds one."""
    if not isinstance(tree, Mapping):
        return {}, []
    inner = next((key for key in NESTED if isinstance(tree.get(key), Mapping)), None)
    state = tree if inner is None else tree[inner]
    tensors = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    beside = [str(name) for name in state if str(name) not in tensors]
    if inner is not None:
        beside += [str(name) for name in tree if name != inner]
    return tensors, beside


def _damaged(file: Path) -> UserError:
    """Why a file gives no tensors; what torch says of it is about torch."""
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        reason, mend = f"cannot be read ({error.strerror})", "correct that"
    else:
        reason, mend = (
            ("is truncated or damaged", "get it again")
            if _begins_as_weights(file, head)
            else ("is no file of weights", "give one that torch or safetensors wrote")
        )
    return UserError(f"{file} {reason}: {mend}.", code="weights-damaged", field=str(file), value=reason)


def _begins_as_weights(file: Path, head: bytes) -> bool:
    """Whether a file's first 8 bytes are those of torch's formats (a zip, a pickle), or safetensors' length of a header."""
    if file.suffix == ".safetensors":
        return not head or int.from_bytes(head, "little") < LONGEST_HEADER
    return not head or head.startswith((b"PK", b"\x80"))


def _with_code(file: Path, name: str) -> UserError:
    return UserError(
        f"{file} asks for code when it is read ({name}): nothing of it has run; do not use this file.",
        code="weights-with-code",
        field=str(file),
        value=name,
    )
