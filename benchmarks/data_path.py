"""How fast volumes get from disk into torch batches, beside MONAI, the machine's floor, and pyarrow's own way to a value.

    python benchmarks/data_path.py [--volumes N] [--repeats R] [--seconds S] [--json]

CT-like volumes of 256×256×128 (the phantom's, regridded, with scanner noise) are cut to a random 224×224×112 and flipped by
chance; where a batch ends as float in [-1, 1], intensities are also scaled and shifted. Everything is read from warm caches.

One core: each way makes batches of BATCH volumes in this process, pinned to one core; what counts is the core's time that the
process used, not what it waited for a busy machine. Two workers: two processes read for a third that only receives, by either
`data.loader`; volumes a second, and volumes in a second of all cores' time that any process of it used. Their start, and Ray
Data's planning of a stream, do not count: the time runs from the fifth batch.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from brgsa.volumes import decode, encode
from brgsa.volumes.augment import Augmentation
from brgsa.volumes.intensity import Intensity, unit_intensities
from brgsa_platform.config import DataSection
from brgsa_platform.loading.batches import BatchSource, SplitIndex, training_batches
from brgsa_platform.loading.loaders import VolumeReader
from brgsa_platform.loading.order import Items, epoch_batches
from brgsa_platform.store.reader import encoded_volume

FULL = ((256, 256, 128), (224, 224, 112))
BATCH = 8
WORKERS = 2
LOADERS: tuple[Literal["torch", "ray"], ...] = ("torch", "ray")
ENDLESS = 10**6  # epochs: the clock ends a pass
FLIP, SCALE, SHIFT, NOISE = 0.5, 0.1, 20.0, 20.0
AUGMENTATION = Augmentation(seed=0, flip=(FLIP, 0.0, 0.0))
Batches = Iterator[torch.Tensor]


@dataclass(frozen=True)
class Data:
    """The same volumes three times: as NIfTI files, as a shard, and where MONAI may cache."""

    niftis: list[Path]
    index: SplitIndex
    cache: Path
    shape: tuple[int, int, int]
    crop: tuple[int, int, int]

    @property
    def shard(self) -> str:
        return self.index.shards[0]

    @property
    def reader(self) -> VolumeReader:
        return BatchSource(self.index, self.crop).reader(AUGMENTATION)

    @property
    def buffer_reader(self) -> VolumeReader:
        return BufferReader(self.index.shards, self.index.shard, self.index.row_group, self.crop, AUGMENTATION)


class BufferReader(VolumeReader):
    """Takes a stored volume as pyarrow gives it, a copy, instead of finding it in the mapped file."""

    def volume(self, row: int, memory: Any = None) -> Any:
        column = _opened(self.shards[self.shard[row]]).read_row_group(int(self.row_group[row]), columns=["ct"])["ct"]
        return decode(column[0].as_buffer(), memory)


@functools.lru_cache(maxsize=1)
def _opened(shard: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(shard, memory_map=True)


def ct_like(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A volume of int16 HU (x, y, z): a patient of the phantom's on a fine grid, with scanner noise."""
    from scipy.ndimage import gaussian_filter, zoom

    from brgsa.phantom import render, sample_cases

    coarse = render(sample_cases(number + 1, 7)[number])
    hu = zoom(coarse, [n / o for n, o in zip(shape, coarse.shape, strict=True)], order=1)
    noise = gaussian_filter(np.random.default_rng(number).standard_normal(shape, dtype=np.float32), 0.6)
    return np.clip(np.rint(hu + 10.0 * noise / noise.std()), -1000, 1000).astype(np.int16)


def write_shard(path: Path, cells: Sequence[bytes]) -> None:
    """A shard of encoded volumes, in pages as `prepare` writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"ct": pa.array(cells, pa.large_binary())}),
        path,
        row_group_size=1,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )


def make(folder: Path, volumes: int, shape: tuple[int, int, int], crop: tuple[int, int, int]) -> Data:
    """Write the volumes; each is another patient of the phantom."""
    import nibabel

    niftis, cells = [], []
    for number in range(volumes):
        hu = ct_like(number, shape)
        path = folder / f"{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(hu, np.diag([1.5, 1.5, 3.0, 1.0])), path)
        niftis.append(path)
        cells.append(encode(hu))
    shard = folder / "part-00000.parquet"
    write_shard(shard, cells)
    numbers = np.arange(volumes)
    names = [path.name for path in niftis]
    nothing = np.zeros((volumes, 0), np.float32)
    index = SplitIndex(names, numbers, numbers, nothing, [str(shard)], np.zeros_like(numbers), numbers)
    return Data(niftis, index, folder / "cache", shape, crop)


# One core.


def int16_batches(data: Data, reader: VolumeReader, epoch: int) -> Batches:
    """As a training device gets it."""
    for rows in _batches(data, epoch):
        yield torch.from_numpy(reader.read(rows, epoch)).unsqueeze(1)


def float_batches(data: Data, reader: VolumeReader, out: torch.Tensor, epoch: int, noise: float = 0.0) -> Batches:
    """After the fused step, on the CPU, volume by volume; `out` is the same for all batches, as in the training loop."""
    for rows in _batches(data, epoch):
        drawn = Intensity.draw(BATCH, out.device, scale=SCALE, shift=SHIFT, noise=noise)
        blocks = (torch.from_numpy(reader.read(rows[i : i + 1], epoch)) for i in range(BATCH))
        yield unit_intensities(blocks, drawn, out=out)


def floor(data: Data, frames: list[bytes], epoch: int) -> Batches:
    """Decompress a frame in memory into memory that is there, and copy the crop to its place in a batch."""
    import blosc2

    scratch = np.empty(data.shape, np.int16)
    for rows in _batches(data, epoch):
        batch = np.empty((len(rows), *data.crop), np.int16)
        for slot, row in zip(batch, rows, strict=True):
            frame = blosc2.ndarray_from_cframe(frames[row])
            frame.schunk.dparams = blosc2.DParams(nthreads=1)
            frame.schunk.decompress_chunk(0, dst=scratch)
            slot[...] = scratch[tuple(slice(0, size) for size in data.crop)]
        yield torch.from_numpy(batch)


def monai_transforms(data: Data, cached: bool, noise: float) -> Any:
    """MONAI's chain in the order that was fastest: the volume is cropped first, unless a cache holds it scaled."""
    from monai import transforms as m

    keys = ["image"]
    load = m.LoadImaged(keys, image_only=True, ensure_channel_first=True)
    scale = m.ScaleIntensityRanged(keys, -1000, 1000, -1, 1, clip=True)
    crop = m.RandSpatialCropd(keys, roi_size=data.crop, random_size=False)
    return m.Compose(
        [
            load,
            *([scale, crop] if cached else [crop, scale]),
            m.RandFlipd(keys, prob=FLIP, spatial_axis=0),
            m.RandScaleIntensityd(keys, factors=SCALE, prob=1.0),
            m.RandShiftIntensityd(keys, offsets=SHIFT / 1000, prob=1.0),
            *([m.RandGaussianNoised(keys, prob=1.0, std=noise / 1000, sample_std=False)] if noise else []),
        ]
    )


def monai_batches(dataset: Any) -> Callable[[Data, int], Batches]:
    from monai.data import DataLoader

    def batches(data: Data, epoch: int) -> Batches:
        torch.manual_seed(epoch)
        for batch in DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0):
            yield batch["image"]

    return batches


def one_core(data: Data, repeats: int) -> dict[str, list[float]]:
    """Volumes a second of each way in each repeat; the ways take turns, so that a busy machine slows all of them."""
    from monai.data import Dataset, PersistentDataset, set_track_meta

    set_track_meta(False)  # MONAI is faster without
    items = [{"image": str(path)} for path in data.niftis]
    out = torch.empty((BATCH, *data.crop))
    frames = [bytes(encoded_volume(data.shard, row_group)) for row_group in range(len(items))]
    ours, buffered = data.reader, data.buffer_reader

    def nifti(noise: float) -> Any:
        return monai_batches(Dataset(items, monai_transforms(data, False, noise)))

    def persistent(noise: float) -> Any:
        return monai_batches(PersistentDataset(items, monai_transforms(data, True, noise), cache_dir=data.cache))

    ways: dict[str, Callable[[Data, int], Batches]] = {
        "ours, int16": lambda data, epoch: int16_batches(data, ours, epoch),
        "by as_buffer, int16": lambda data, epoch: int16_batches(data, buffered, epoch),
        "ours, float": lambda data, epoch: float_batches(data, ours, out, epoch),
        "by as_buffer, float": lambda data, epoch: float_batches(data, buffered, out, epoch),
        "ours, float and noise": lambda data, epoch: float_batches(data, ours, out, epoch, NOISE),
        "floor": lambda data, epoch: floor(data, frames, epoch),
        "MONAI NIfTI": nifti(0.0),
        "MONAI persistent": persistent(0.0),
        "MONAI NIfTI and noise": nifti(NOISE),
        "MONAI persistent and noise": persistent(NOISE),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread():
        for way in ways.values():
            _rate(way, data)  # fills caches, MONAI's among them
        for _ in range(repeats):
            for name, way in ways.items():
                rates[name].append(_rate(way, data))
    return rates


def _rate(way: Callable[[Data, int], Batches], data: Data) -> float:
    """Volumes in a second of this core's time, over whole epochs and a second at least."""
    started, volumes, epoch = time.process_time(), 0, 0
    while (passed := time.process_time() - started) < 1.0:
        volumes += sum(len(batch) for batch in way(data, epoch))
        epoch += 1
    return volumes / passed


def _batches(data: Data, epoch: int) -> np.ndarray:
    return epoch_batches(data.index.shard, Items.volumes(data.index.scans), BATCH, 0, epoch, 4096)


@contextmanager
def one_thread() -> Iterator[None]:
    """This process on one core."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


# Two workers.


class LoaderRate(NamedTuple):
    """Volumes in a second, and in a second of the cores' time."""

    wall: float
    cores: float


def loaded(data: Data, loader: Literal["ray", "torch"], seconds: float) -> LoaderRate:
    """From two CPUs of Ray Data's, or two processes of torch's, to an actor in a training worker's place."""
    import ray

    source = BatchSource(data.index, data.crop, DataSection(flip=AUGMENTATION.flip, loader=loader, cpus=WORKERS))
    driver, items = os.getpid(), Items.volumes(data.index.scans)

    @ray.remote(num_cpus=1)
    def worker() -> LoaderRate:
        batches = training_batches(source, items, batch_size=BATCH, epochs=range(ENDLESS), seed=0)
        sizes = (sum(len(torch.from_numpy(block)) for block in batch.blocks) for batch in batches)
        for _ in range(2 * WORKERS):
            next(sizes)
        started, used, volumes = time.perf_counter(), _cores_seconds(driver), 0
        while (passed := time.perf_counter() - started) < seconds:
            volumes += next(sizes)
        return LoaderRate(volumes / passed, volumes / (_cores_seconds(driver) - used))

    return LoaderRate(*ray.get(worker.remote()))


def _cores_seconds(pid: int) -> float:
    """Time on any core of a process and all below it."""
    import psutil

    total = 0.0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def two_workers(data: Data, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Both loaders in each repeat, in turns."""
    from brgsa_platform.runtime.session import ray_session

    rates: dict[str, list[float]] = {}
    with ray_session(num_cpus=WORKERS + 1):
        loaded(data, "ray", min(seconds, 1.0))  # starts Ray's processes
        for _ in range(repeats):
            for loader in LOADERS:
                rate = loaded(data, loader, seconds)
                rates.setdefault(f"loader {loader}", []).append(rate.wall)
                rates.setdefault(f"loader {loader}, a core", []).append(rate.cores)
    return rates


def run(
    volumes: int, repeats: int, seconds: float, shape: tuple[int, int, int], crop: tuple[int, int, int]
) -> dict[str, Any]:
    """Print the table, return the figures."""
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder), volumes, shape, crop)
        stored = np.mean([len(encoded_volume(data.shard, row)) for row in range(volumes)])
        pairs = two_workers(data, repeats, seconds)
        alone = one_core(data, repeats)
    loads.append(os.getloadavg()[0])
    median = {name: float(np.median(rates)) for name, rates in (alone | pairs).items()}
    print(
        f"{volumes} volumes of {shape}, {stored / 1e6:.1f} MB stored; load {loads[0]:.1f} before, {loads[1]:.1f} after\n"
    )
    print(f"{'volumes/s':32}{'median':>9}{'min':>9}{'max':>9}")
    for title, rows in (("one core", alone), (f"{WORKERS} workers", pairs)):
        print(title)
        for name, rates in rows.items():
            print(f"  {name:30}{median[name]:9.1f}{min(rates):9.1f}{max(rates):9.1f}")
    ratios = {
        "vs_monai_nifti": median["ours, float"] / median["MONAI NIfTI"],
        "vs_monai_persistent": median["ours, float"] / median["MONAI persistent"],
        "vs_floor": median["ours, int16"] / median["floor"],
        "as_buffer_vs_ours": median["by as_buffer, float"] / median["ours, float"],
        "ray_vs_direct": median["loader ray"] / median["loader torch"],
        "ray_vs_direct_a_core": median["loader ray, a core"] / median["loader torch, a core"],
    }
    print("\n" + "\n".join(f"{name:32}{ratio:9.2f}" for name, ratio in ratios.items()))
    figures = {
        name: {"median": median[name], "min": min(rates), "max": max(rates)} for name, rates in (alone | pairs).items()
    }
    return {"benchmark": "data_path", "ratios": ratios, "figures": figures | {"load": loads, "stored_mb": stored / 1e6}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--volumes", type=int, default=16, help=f"volumes to read, at least {BATCH} (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each way (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each pass at two workers (default 8)")
    parser.add_argument("--small", action="store_true", help="tiny volumes: only to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line at the end")
    options = parser.parse_args(arguments)
    if options.volumes < BATCH:
        parser.error(f"--volumes {options.volumes} does not fill a batch of {BATCH}")
    shape, crop = ((32, 32, 16), (28, 28, 14)) if options.small else FULL
    result = run(options.volumes, options.repeats, options.seconds, shape, crop)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
