"""MONAI's transforms by name: `{"name": "RandGaussianSmooth", "prob": 0.2, "sigma_x": [0.5, 1.0]}`.

A transform gets a crop, float32 HU (1, x, y, z), and must keep its shape; the result is rounded to int16 again. Random
transforms are seeded for each volume. MONAI is imported only when a transform is built, as importing it takes up to 17 s.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError, nearest

Specs = Sequence[Mapping[str, Any]]
INT16 = np.iinfo(np.int16)


def apply(specs: Specs, volume: npt.NDArray[np.int16], seed: int) -> npt.NDArray[np.int16]:
    """The volume, int16 HU (x, y, z), after the transforms, one after the other; the same seed gives the same result."""
    pipeline = _built(json.dumps([dict(spec) for spec in specs]))
    pipeline.set_random_state(seed=seed)
    transformed = np.asarray(pipeline(np.ascontiguousarray(volume, dtype=np.float32)[None]))[0]
    rounded: npt.NDArray[np.int16] = np.clip(np.rint(transformed), INT16.min, INT16.max).astype(np.int16)
    return rounded


def check(specs: Specs, crop: tuple[int, int, int]) -> None:
    """Build and try each transform on an empty volume of `crop` voxels.

    Raises:
        UserError: a name that MONAI does not have (with the nearest), arguments that the transform does not take, or a
            transform that fails or changes the shape.
    """
    for spec in specs:
        transform = build(spec)
        if hasattr(transform, "prob"):
            transform.prob = 1.0  # otherwise the trial run would mostly leave the volume as it is
        try:
            shape = tuple(np.asarray(transform(np.zeros((1, *crop), dtype=np.float32))).shape)
        except Exception as error:
            raise _refusal("transform-fails", spec, f"fails on a crop of {crop} ({_first_line(error)})") from error
        if shape != (1, *crop):
            what = f"makes {shape[1:]} of a crop of {crop}; it must keep the shape"
            raise _refusal("transform-changes-shape", spec, what)


def build(spec: Mapping[str, Any]) -> Any:
    """One of MONAI's array transforms from its name and arguments.

    Raises:
        UserError: see `check`.
    """
    arguments = dict(spec)
    name = arguments.pop("name")
    known = _known()
    if name not in known:
        raise UserError(
            f"data.transforms: MONAI has no array transform {name!r}{nearest(name, list(known))}.",
            code="unknown-transform",
            field="data.transforms",
            value=name,
        )
    try:
        return known[name](**arguments)
    except Exception as error:
        what = f"cannot be made of {arguments} ({_first_line(error)})"
        raise _refusal("transform-arguments", spec, what) from error


def _refusal(code: str, spec: Mapping[str, Any], what: str) -> UserError:
    name = spec["name"]
    return UserError(f"data.transforms: {name} {what}.", code=code, field="data.transforms", value=name)


@functools.cache
def _known() -> dict[str, Any]:
    import monai.transforms as monai
    from monai.transforms.transform import MapTransform, Transform

    return {
        name: kind
        for name, kind in vars(monai).items()
        if isinstance(kind, type)
        and issubclass(kind, Transform)
        and not issubclass(kind, MapTransform)
        and not kind.__module__.startswith("monai.transforms.io")  # a configuration must neither read nor write files
    }


@functools.lru_cache(maxsize=4)
def _built(specs: str) -> Any:
    from monai.transforms.compose import Compose

    return Compose([build(spec) for spec in json.loads(specs)])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
