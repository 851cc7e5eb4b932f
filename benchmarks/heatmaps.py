"""How often the highest place of a heat map lies in the lesion that the prompt names, on a phantom, whose lesions are known.

    python benchmarks/heatmaps.py demo/runs/brgsa --seed 1 --maps 200 [--json]

A lesion's voxels are those that its painter changes (brgsa/phantom/lesions.py). Counted are true positives: the scan has the
abnormality, and scores higher for its prompt than 90 % of the validation scans. Focal is what the phantom paints at places;
beside it stand those that fill a space of the body, along its wall or all round. "Next to" is within 15 mm, two voxels of the
demo's grid. Beside the map: a random voxel of the body, and Grad-CAM on the first layer of the tower, whose map is the finest.

The phantom's seed is another than that of the run's data (0 in the demo), so that no scan was seen before, neither in training
nor where the map's settings were chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn import functional

from brgsa import checkpoint as checkpoint_files
from brgsa import zeroshot
from brgsa.heatmaps import support
from brgsa.model import BrgSA, Embeddings
from brgsa.phantom import Case, render, sample_cases
from brgsa.phantom.lesions import PAINTERS
from brgsa.volumes import Geometry, Volume, standardize
from brgsa.volumes.augment import centre_crop
from brgsa_platform.training import run_checkpoints

FOCAL = (
    "Lung nodule", "Consolidation", "Lung opacity", "Atelectasis", "Lymphadenopathy", "Hiatal hernia", "Lung cyst", "Lung mass",
    "Coronary artery wall calcification", "Arterial wall calcification", "Medical material",
)  # fmt: skip
SPREAD = ("Pleural effusion", "Pericardial effusion", "Pneumothorax", "Pneumomediastinum")
POSITIVE = 0.9  # of the validation scans score lower
LESION_HU = 40.0
NEXT_MM = 15.0
METHODS = ("ours", "grad_cam", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that was trained on a phantom")
    parser.add_argument("--scans", type=int, default=1400, help="of that phantom")
    parser.add_argument("--seed", type=int, default=1, help="of that phantom; another than that of the run's data")
    parser.add_argument("--maps", type=int, default=200, help="at most so many")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = checkpoint_files.load(run_checkpoints.resolve(given.run))
    if not loaded.run["data"].get("phantom"):
        sys.exit(f"{given.run} was not trained on a phantom, whose lesions are known")
    distances: dict[str, dict[str, list[float]]] = {}
    rng = np.random.default_rng(0)
    for number, (name, away, hu, volume, prompt) in enumerate(true_positives(loaded, given.scans, given.seed)):
        if number == given.maps:
            break
        geometry = Geometry.from_dict(loaded.run["data"]["geometry"])
        maps = {
            "ours": support(loaded.model, volume, prompt, geometry.spacing).relevance,
            "grad_cam": grad_cam(loaded.model, volume, prompt),
        }
        found = distances.setdefault(name, {method: [] for method in METHODS})
        for method, relevance in maps.items():
            found[method].append(float(away.flat[int(relevance.argmax())]))
        found["random"].append(float(away.flat[rng.choice(np.flatnonzero(hu > -900))]))
    report(distances, given.json)


def true_positives(loaded: Any, scans: int, seed: int) -> Iterator[tuple[str, Any, Any, torch.Tensor, Embeddings]]:
    """Abnormality, distance (mm) of each voxel from its lesion, HU, the tower's input and the prompt's embeddings."""
    geometry, model = Geometry.from_dict(loaded.run["data"]["geometry"]), loaded.model.eval()
    for case in sample_cases(scans, seed):
        if case.split != "valid" or not case.names & {*FOCAL, *SPREAD}:
            continue
        hu = seen(case, geometry, model)
        volume = torch.from_numpy(hu / 1000).clamp(-1, 1)[None, None]
        embedded = model.encode_volumes(volume)
        for finding in case.findings:
            (text,) = zeroshot.prompts([finding.name])
            known = loaded.run["reference_scores"].get(text)
            if finding.name not in (*FOCAL, *SPREAD) or not known:
                continue
            prompt = model.encode_texts([text])
            if np.mean(np.array(known) < zeroshot.scores(embedded, prompt).item()) < POSITIVE:
                continue
            with unpainted(finding.name):
                lesion = np.abs(hu - seen(case, geometry, model)) > LESION_HU
            if lesion.any():
                yield finding.name, distance_transform_edt(~lesion, sampling=geometry.spacing), hu, volume, prompt


@contextmanager
def unpainted(name: str) -> Iterator[None]:
    """Scans without the lesions of an abnormality, and with all else that it does, such as a raised diaphragm."""
    painter = PAINTERS[name]
    PAINTERS[name] = lambda chest, finding, rng: None
    try:
        yield
    finally:
        PAINTERS[name] = painter


def seen(case: Case, geometry: Geometry, model: BrgSA) -> Any:
    """A case as the model sees it, float32 HU."""
    volume = Volume(np.rint(render(case)).astype(np.int16), case.reconstructions[0].spacing)
    return centre_crop(standardize(volume, geometry), model.config.vision.evaluated(geometry.shape)).astype(np.float32)


def grad_cam(model: BrgSA, volume: torch.Tensor, prompt: Embeddings) -> Any:
    """Selvaraju et al. 2017 on the first residual layer, whose map is the finest; nothing for other towers."""
    layer = getattr(getattr(model.vision, "net", None), "layer1", None)
    if layer is None:
        return np.zeros(volume.shape[2:])
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = zeroshot.scores(model.embed_volumes(volume.detach().requires_grad_()), prompt)[0, 0]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    cells = (gradient.mean((2, 3, 4), keepdim=True) * kept[0]).sum(1, keepdim=True).clamp(min=0).detach()
    return functional.interpolate(cells, size=volume.shape[2:], mode="trilinear")[0, 0].numpy()


def report(distances: dict[str, dict[str, list[float]]], as_json: bool) -> None:
    """Print the shares by abnormality, and over all maps."""
    rows = dict(sorted(distances.items(), key=lambda item: -len(item[1]["ours"])))
    for group, names in (("focal", FOCAL), ("spread", SPREAD), ("all", (*FOCAL, *SPREAD))):
        rows[group] = {method: [d for n in names if n in distances for d in distances[n][method]] for method in METHODS}
    figures = {
        name: {"maps": len(found["ours"])}
        | {f"{method}_in": share(found[method], 0.0) for method in METHODS}
        | {f"{method}_next": share(found[method], NEXT_MM) for method in METHODS}
        for name, found in rows.items()
    }
    for name, row in figures.items():
        shares = "  ".join(
            f"{method} {row[f'{method}_in']:.2f} in, {row[f'{method}_next']:.2f} in or next to" for method in METHODS
        )
        print(f"{name:36s} {row['maps']:4d} maps  {shares}")
    whole = figures["focal"]
    ratios = {
        f"vs_{method}": whole["ours_next"] / max(whole[f"{method}_next"], 1 / max(whole["maps"], 1))
        for method in METHODS[1:]
    }
    if as_json:
        print(json.dumps({"benchmark": "heatmaps", "ratios": ratios, "figures": figures}))


def share(distances: list[float], within: float) -> float:
    return float(np.mean(np.array(distances) <= within)) if distances else float("nan")


if __name__ == "__main__":
    main()
