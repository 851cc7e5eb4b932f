"""How fast `brgsa prepare` is on one core beside the reference's procedure, and whether its memory stays flat.

    python benchmarks/prepare.py [--volumes 6] [--sizes 64 512 4096] [--json]

Speed: CT-like volumes of 512×512×120 as .nii.gz without geometry, as in CT-RATE's first release, to 256×256×128 voxels of
1.5×1.5×3 mm. Ours: read, to HU, resample, crop, pad, clip, encode, checksum, write a shard. The reference's procedure with
SimpleITK: read, rescale, resample, crop, pad, clamp, write .nii.gz. One process on one core, one thread, files in the page
cache, the two in turn; medians of the volumes.

Memory: archives of small volumes through Ray Data, each in a process tree of its own; its proportional set size is
sampled, and the time of an archive of sixteen volumes, one a shard, is taken off as the fixed cost.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

SPACING, SLOPE, INTERCEPT = (0.72, 0.72, 2.5), 1.0, -1024.0
TARGET_SPACING, TARGET_SHAPE = (1.5, 1.5, 3.0), (256, 256, 128)
FIXED = 16  # volumes: as many shards as the smallest archives have
METADATA = {
    "RescaleSlope": SLOPE,
    "RescaleIntercept": INTERCEPT,
    "XYSpacing": f"[{SPACING[0]}, {SPACING[1]}]",
    "ZSpacing": SPACING[2],
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
}


def ct_like(seed: int, shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """A phantom's chest in HU (x, y, z), enlarged to `shape`, with noise as grainy as a scanner's."""
    from scipy import ndimage

    from brgsa.phantom.cases import sample_cases
    from brgsa.phantom.render import render

    chest = render(sample_cases(4, seed)[0]).astype(np.float32)
    chest = ndimage.zoom(chest, [want / have for want, have in zip(shape, chest.shape, strict=True)], order=1)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0.8, 0.8, 0.0))
    return np.rint(chest + noise * (18 / noise.std())).clip(-1024, 3071).astype(np.int16)


def reference(path: Path, out: Path) -> npt.NDArray[np.int16]:
    """The reference's procedure on one file, in SimpleITK's terms; gives what it wrote (x, y, z)."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    image.SetSpacing(SPACING)
    image = sitk.Cast(image, sitk.sitkFloat32) * SLOPE + INTERCEPT
    size = [round(n * s / t) for n, s, t in zip(image.GetSize(), SPACING, TARGET_SPACING, strict=True)]
    image = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        TARGET_SPACING,
        image.GetDirection(),
        -1000.0,
    )
    over = [max(0, n - want) for n, want in zip(image.GetSize(), TARGET_SHAPE, strict=True)]
    image = sitk.Crop(image, [n // 2 for n in over], [n - n // 2 for n in over])
    under = [want - n for n, want in zip(image.GetSize(), TARGET_SHAPE, strict=True)]
    image = sitk.ConstantPad(image, [n // 2 for n in under], [n - n // 2 for n in under], -1000.0)
    image = sitk.Cast(sitk.Clamp(image, sitk.sitkFloat32, -1000.0, 1000.0), sitk.sitkInt16)
    sitk.WriteImage(image, str(out))
    written: npt.NDArray[np.int16] = sitk.GetArrayViewFromImage(image).T
    return np.array(written)


def speed(volumes: int, folder: Path) -> dict[str, float]:
    """Seconds a volume of ours and of the reference's, in turn, on one core."""
    import nibabel
    import SimpleITK as sitk

    from brgsa.volumes import Geometry, read_volume, standardize
    from brgsa_platform.layouts import Item
    from brgsa_platform.runtime.storage import Folder
    from brgsa_platform.store.writer import ShardWriter

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    paths = []
    for seed in range(volumes):
        stored = ct_like(seed, (512, 512, 120)) - np.int16(INTERCEPT)
        paths.append(folder / f"v{seed}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), paths[-1])
    writer = ShardWriter(Folder(folder / "store"), Geometry())
    ours, theirs = [], []
    for number, path in enumerate(paths):
        item = Item(f"v{number}", f"v{number}", f"p{number}", "train", str(path), path.name, "A report.", {}, METADATA)
        started = time.perf_counter()
        error = writer(f"part-{number:05d}.parquet", [item])
        between = time.perf_counter()
        other = reference(path, folder / "reference.nii.gz")
        ended = time.perf_counter()
        assert not error, error
        ours.append(between - started)
        theirs.append(ended - between)
        mine = standardize(read_volume(path, METADATA), Geometry())
        # The two grids are shifted by a fraction of a voxel (centre against corner): alike, not equal.
        assert np.corrcoef(mine[::4, ::4, ::4].ravel(), other[::4, ::4, ::4].ravel())[0, 1] > 0.9
    return {"ours_s": statistics.median(ours), "reference_s": statistics.median(theirs), "volumes": volumes}


def flatness(sizes: Sequence[int], folder: Path) -> dict[int, dict[str, float]]:
    """Archive size → peak memory in MiB, seconds in all, milliseconds a volume beyond the fixed cost."""
    import nibabel

    nibabel.save(
        nibabel.Nifti1Image(ct_like(0, (128, 128, 64)), np.diag([-3.0, -3.0, 5.0, 1.0])), folder / "small.nii.gz"
    )
    found: dict[int, dict[str, float]] = {}
    for size in (FIXED, *sizes):
        table = folder / f"{size}.csv"
        with table.open("w", newline="") as file:
            rows = ([f"v{i:06d}", "small.nii.gz", "There is no pleural effusion. " * 30] for i in range(size))
            csv.writer(file).writerows([["volume_id", "volume", "report"], *rows])
        found[size] = _prepared(table, folder / f"store-{size}")
    fixed = found.pop(FIXED)["seconds"]
    for size, figures in found.items():
        figures["ms_a_volume"] = 1000 * (figures["seconds"] - fixed) / (size - FIXED)
    return found


def _prepared(table: Path, out: Path) -> dict[str, float]:
    """Prepare one archive in a process tree of its own; its peak memory, and its duration once workers are warm."""
    import psutil

    command = [sys.executable, __file__, "--child", str(table), str(out)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{out}.db", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    peak = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not over.wait(0.5):
            total = 0
            for one in [root, *_children(root)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    output, errors = process.communicate()
    over.set()
    thread.join()
    assert process.returncode == 0, errors
    return {"peak_mib": peak, "seconds": float(output.splitlines()[-1])}


def child(table: Path, out: Path) -> None:
    """Prepare the archive after a small one that starts Ray's workers; print the seconds of the former."""
    from brgsa.volumes import Geometry
    from brgsa_platform.runtime.session import ray_session
    from brgsa_platform.store.prepare import PrepareOptions, prepare

    geometry = Geometry((6.0, 6.0, 10.0), (64, 64, 32))
    rows = table.read_text(encoding="utf-8").splitlines()
    warm = table.with_name(f"warm-{table.name}")
    warm.write_text("\n".join([rows[0], *(f"w{i},{rows[1].partition(',')[2]}" for i in range(32))]) + "\n")
    with ray_session():
        prepare(warm, "manifest", out.with_name(f"warm-{out.name}"), PrepareOptions(geometry))
        started = time.monotonic()
        prepare(table, "manifest", out, PrepareOptions(geometry))
        print(time.monotonic() - started)


def _children(process: object) -> list[object]:
    import psutil

    try:
        return list(process.children(recursive=True))  # type: ignore[attr-defined]
    except psutil.Error:
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=6, help="large volumes for the speed on one core")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 512, 4096], help="archives for the memory")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args(arguments)
    if chosen.child:
        child(*chosen.child)
        return 0
    with tempfile.TemporaryDirectory(prefix="brgsa-prepare-") as scratch:
        flat = flatness(chosen.sizes, Path(scratch)) if chosen.sizes else {}
        fast = speed(chosen.volumes, Path(scratch))
    ratio = fast["reference_s"] / fast["ours_s"]
    print(f"one core, 512×512×120 .nii.gz: ours {fast['ours_s']:.2f} s, reference {fast['reference_s']:.2f} s a volume")
    print(f"prepare is {ratio:.2f} times the reference")
    for size, figures in flat.items():
        print(
            f"{size:>6} small volumes: peak {figures['peak_mib']:.0f} MiB, {figures['ms_a_volume']:.1f} ms a volume, "
            f"{figures['seconds']:.0f} s in all"
        )
    ratios = {"vs_reference": ratio}
    if len(flat) > 1:
        peaks, times = ([f[key] for f in flat.values()] for key in ("peak_mib", "ms_a_volume"))
        ratios |= {
            "memory_largest_vs_smallest": max(peaks) / min(peaks),
            "time_largest_vs_smallest": max(times) / min(times),
        }
    if chosen.json:
        sizes = {f"{key}_at_{size}": value for size, found in flat.items() for key, value in found.items()}
        print(json.dumps({"benchmark": "prepare", "ratios": ratios, "figures": {**fast, **sizes}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
