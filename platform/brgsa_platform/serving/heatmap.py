"""`brgsa heatmap`: where in a scan a prompt is supported, as NIfTI in the scan's own geometry and as a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa.volumes import Geometry, Volume, standardize
from brgsa_platform.runtime import console
from brgsa_platform.serving.scorer import RankedPrompt, ScanOptions, Scorer, Seen

STEPS = 10000  # of a map between 0 and 1, while it is brought to the scan's grid
PICTURE = "heatmap.png"


@dataclass(frozen=True)
class HeatMap:
    """One prompt's map.

    Attributes:
        ranked: the prompt, its score and the model's opinion.
        file: the map as NIfTI, of the opinion's height: all 0 where there is none, or no place that raises the score.
        peak_mm: where it is highest, mm in RAS as viewers show it; None for a map of zeros.
    """

    ranked: RankedPrompt
    file: Path
    peak_mm: tuple[float, float, float] | None

    @property
    def opinion(self) -> float | None:
        """See `RankedPrompt.opinion`."""
        return self.ranked.opinion

    def said(self) -> str:
        """What a reader has to know of this map."""
        if self.opinion == 0:
            return "no opinion: not drawn"
        if self.peak_mm is None:
            return "no place speaks for it: not drawn"
        if self.opinion is None:
            return "the checkpoint has no scores to compare with: the map's scale says nothing"
        return f"{self.opinion:.0%}"


@dataclass(frozen=True)
class HeatMaps:
    """All prompts' maps of a scan, and one picture of them."""

    scan: Path
    maps: list[HeatMap]
    picture: Path
    warnings: list[str]

    def to_json(self) -> str:
        """A JSON object with scan, maps, picture and warnings."""
        maps = [
            {**one.ranked._asdict(), "opinion": one.opinion, "file": str(one.file), "peak_mm": one.peak_mm}
            for one in self.maps
        ]
        tree = {"scan": str(self.scan), "maps": maps, "picture": str(self.picture), "warnings": self.warnings}
        return json.dumps(tree, indent=1, allow_nan=False)

    def print(self, as_json: bool = False) -> None:
        """Print a table, or JSON, on standard output."""
        if as_json:
            print(self.to_json())
            return
        rows = [
            [one.ranked.prompt, f"{one.ranked.score:.3f}", one.said(), _place(one.peak_mm), one.file.name]
            for one in self.maps
        ]
        heads = ["prompt", "score", "opinion", "highest at (mm, RAS)", "map"]
        console.print_table(console.table(heads, rows, title=self.scan.name, right=(1,), unbroken=(1,)))
        console.print_line("opinion: how far the model takes this scan for one with it, beside its validation scans.")
        for warning in self.warnings:
            console.print_line(f"Caution: {warning}")
        console.print_line(f"Picture: {self.picture}")


def heatmap(
    checkpoint: Path | str,
    scan_path: Path | str,
    prompts: Sequence[str],
    out: Path | str,
    options: ScanOptions = ScanOptions(),
    *,
    device: str | None = None,
) -> HeatMaps:
    """Write a map a prompt, and a picture with the slices through the maximum of each, into the folder `out`.

    A map's values are the support (see `brgsa.heatmaps`), 1 at its highest place, times the model's opinion. So a prompt
    that the model does not see in the scan has an empty map.

    Args:
        checkpoint, scan_path, options, device: as for `predict`.

    Raises:
        UserError: there is no prompt ("no-prompts"), the folder cannot be written ("folder-not-writable"), or see `predict`.
    """
    if not prompts:
        raise UserError(
            'Give at least one --prompt, such as "There is pleural effusion."', code="no-prompts", field="--prompt"
        )
    from brgsa_platform.runtime import plots

    scan_path, out = Path(scan_path), Path(out)
    scorer = Scorer(checkpoint, prompts, device=device)
    seen = scorer.read(scan_path, options)
    try:
        out.mkdir(parents=True, exist_ok=True)
        maps, shown = [], []
        for number, text in enumerate(scorer.texts):
            ranked, drawn = scorer.map(seen, number)
            file = out / f"{number + 1:02d}-{_slug(text)}.nii.gz"
            peak = _save(drawn, seen, scorer.geometry, file)
            one = HeatMap(ranked, file, peak)
            maps.append(one)
            shown.append((f"{text}\n{one.said()}", drawn))
        plots.save(plots.heat_figure(seen.hu, shown, scorer.geometry.spacing), out / PICTURE)
    except OSError as error:
        raise UserError(
            f"The folder {out} cannot be written ({error.strerror or error}): choose another --out.",
            code="folder-not-writable",
            field="--out",
            value=str(out),
        ) from error
    return HeatMaps(scan_path, maps, out / PICTURE, seen.warnings)


def _save(
    relevance: npt.NDArray[np.float32], seen: Seen, geometry: Geometry, file: Path
) -> tuple[float, float, float] | None:
    """Write a map on the model's grid as NIfTI on the scan's; gives the place of its maximum."""
    import nibabel

    scan, placement = seen.scan, seen.scan.placement
    assert placement is not None  # it was read from a file
    # Both grids have one middle, so that the way back is the way there.
    fine = standardize(
        Volume(np.rint(relevance * STEPS).astype(np.int16), geometry.spacing),
        Geometry(spacing=scan.spacing, shape=_shape(scan.array), clip=(0, STEPS)),
    )
    values = np.ascontiguousarray(placement.to_file(fine), dtype=np.float32) / STEPS
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ placement.affine  # NIfTI's x goes to the right of LPS's, y to its front
    image: Any = nibabel.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = b"brgsa heat map"
    with written_aside(file) as aside:
        aside.write_bytes(_compressed(image))
    if not values.any():
        return None
    at = affine @ [*np.unravel_index(int(values.argmax()), values.shape), 1]
    return float(at[0]), float(at[1]), float(at[2])


def _compressed(image: Any) -> bytes:
    import gzip

    data: bytes = gzip.compress(image.to_bytes(), 6)
    return data


def _shape(array: npt.NDArray[Any]) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z


def _slug(text: str) -> str:
    """A prompt as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def _place(mm: tuple[float, float, float] | None) -> str:
    return "" if mm is None else ", ".join(f"{n:.0f}" for n in mm)
