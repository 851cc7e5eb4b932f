"""What `brgsa doctor` runs on a node: each probe looks at one thing and returns plain facts.

Ray sends these functions by value, so that they run on a node whose brgsa is another version, or missing. So each probe
imports what it needs inside itself.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import time
import uuid
from importlib import metadata, util
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "mlflow", "brgsa-platform")
UNLIMITED = 2**60  # bytes; cgroup v1 writes a larger number where there is no limit
# A container's own limit, in cgroup v2 and v1.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def versions() -> dict[str, str | None]:
    """The versions of Python and of each package, and the commit of brgsa's code; None where it is missing or unknown."""
    import platform

    by_package: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            by_package[package] = None
    try:
        from brgsa_platform.runtime.version import git_commit

        by_package["commit"] = git_commit()
    except ImportError:
        by_package["commit"] = None
    return by_package


def memory() -> dict[str, Any]:
    """Bytes of shared memory, of the container's limit, and of the disk that Ray spills to.

    `store_folder` and `spill_folder` are those of the raylet that started this process; None where there is no raylet.
    `shm_total` is None where there is no /dev/shm.
    """
    raylet = raylet_options()
    spill = raylet.get("fallback_directory")
    disk = shutil.disk_usage(spill or "/tmp")
    facts: dict[str, Any] = {
        "limit": memory_limit(),
        "store_folder": raylet.get("plasma_directory"),
        "spill_folder": spill,
        "disk_total": disk.total,
        "disk_free": disk.free,
        "shm_total": None,
        "shm_left_behind": 0,
    }
    shm = Path("/dev/shm")
    if shm.is_dir():
        facts["shm_total"] = shutil.disk_usage(shm).total
        # Ray removes the names of its own files there, so every file that has a name belongs to others.
        facts["shm_left_behind"] = sum(f.stat().st_blocks * 512 for f in shm.iterdir() if f.is_file())
    return facts


def raylet_options() -> dict[str, str]:
    """The options of the raylet that started this process, without their dashes; empty where there is no raylet."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    if not words[0].endswith("raylet"):
        return {}
    return {key.removeprefix("--"): value for key, _, value in (word.partition("=") for word in words[1:])}


def memory_limit(limits: tuple[str, ...] = CGROUP_LIMITS) -> int:
    """Bytes of memory that this container may use; the machine's memory where the container has no limit of its own.

    Args:
        limits: files of the limits; the first one that holds a number counts.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < UNLIMITED:
            return min(machine, int(text))
    return machine


def gpus(counted: float = 0.0) -> dict[str, Any]:
    """GPUs that the driver lists and that torch sees, the driver's version and CUDA, and the CUDA that torch was built for.

    torch is imported only where there is a GPU to see: the import takes seconds.

    Args:
        counted: GPUs that Ray counts on this node.
    """
    facts: dict[str, Any] = {"listed": [], "driver": None, "driver_cuda": None, "torch_cuda": None, "seen": 0}
    torch_package = util.find_spec("torch")
    if torch_package is not None and torch_package.origin is not None:
        facts["torch_cuda"] = runpy.run_path(str(Path(torch_package.origin).parent / "version.py")).get("cuda")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = [line.split(", ") for line in _output(query).splitlines() if ", " in line]
        facts["listed"] = [line[0] for line in lines]
        facts["driver"] = lines[0][1] if lines else None
        version = re.search(r"CUDA Version:\s*([\d.]+)", _output(["nvidia-smi"]))
        facts["driver_cuda"] = version[1] if version else None
    if (facts["listed"] or counted) and torch_package is not None:
        facts["seen"] = _gpus_of_torch()
    return facts


def _gpus_of_torch() -> int:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden == "":  # Ray hides the GPUs from a task that asked for none
        del os.environ["CUDA_VISIBLE_DEVICES"]
    import torch

    count = torch.cuda.device_count()
    if hidden == "":
        os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    return count


def _output(command: list[str]) -> str:
    """Standard output of a command; empty where it cannot run or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def clock() -> float:
    """Seconds since 1970 by this node's clock."""
    return time.time()


def storage(url: str, size: int, marker: str | None = None, expected: str = "") -> dict[str, Any]:
    """Whether a folder is the same as on another node, and how fast `size` bytes are written and read there.

    The bytes are written aside, brought to the disk, renamed, read back and removed. An object store gets a quarter of
    them: it may be far away.

    Args:
        marker, expected: a file that another node has written into the folder, and its text.

    Returns:
        `seen`: whether the marker is there; `write` and `read` in MB/s; `error`: what did not work, None where all did.
    """
    from brgsa_platform.runtime.storage import Folder, short_error

    facts: dict[str, Any] = {"seen": True, "write": None, "read": None, "error": None}
    name = f".brgsa-doctor-{uuid.uuid4().hex}"
    try:
        folder = Folder(url)
        if marker is not None:
            facts["seen"] = folder.exists(marker) and folder.read(marker).decode("utf-8") == expected
            if not facts["seen"]:
                return facts
        size = size // 4 if folder.remote else size
        block = os.urandom(2**20) * (size // 2**20)
        start = time.perf_counter()
        with folder.written_aside(name) as aside, aside.open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        facts["write"] = size / 1e6 / (time.perf_counter() - start)
        try:
            if not folder.remote:
                _drop_from_cache(folder.at(name))
            start = time.perf_counter()
            same = folder.read(name) == block
            facts["read"] = size / 1e6 / (time.perf_counter() - start)
            if not same:
                facts["error"] = "what was read back is not what was written"
        finally:
            folder.delete(name)
    except Exception as error:  # of the folder, its file system or the network: each one is an answer
        facts["error"] = short_error(error)
    return facts


def _drop_from_cache(path: str) -> None:
    """Drop a file from the page cache, so that reading it back measures the disk."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tracking_answer(uri: str, experiment: str) -> dict[str, Any]:
    """Ask the tracking store a question that needs credentials. A store that is not there is not made.

    Returns:
        `seconds` until it answered, None where there is no store yet; `error`, None where all is well; and `mend`, where
        the error itself names one.
    """
    from brgsa.errors import UserError
    from brgsa_platform.runtime.addresses import hide_credentials
    from brgsa_platform.runtime.storage import error_line
    from brgsa_platform.tracking import connection

    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.is_file():
        folder = next(parent for parent in path.parents if parent.is_dir())
        writable = os.access(folder, os.W_OK)
        return {"seconds": None, "error": None if writable else f"{folder} cannot be written"}
    try:
        api = connection.client(uri)
        start = time.perf_counter()
        api.get_experiment_by_name(experiment)
        return {"seconds": time.perf_counter() - start, "error": None}
    except UserError as error:
        reason, _, mend = str(error).partition(": ")  # the form of every UserError
        return {"seconds": None, "error": reason, "mend": mend[:1].upper() + mend[1:]}
    except Exception as error:
        return {"seconds": None, "error": hide_credentials(error_line(error))}


def put(size: int) -> tuple[list[Any], float]:
    """Put an object of `size` bytes into this node's object store.

    Returns:
        Its reference, in a list so that Ray passes on the reference and not the object; and the seconds that it took.
    """
    import numpy as np
    import ray

    block = np.ones(size, np.uint8)
    start = time.perf_counter()
    return [ray.put(block)], time.perf_counter() - start


def get(refs: list[Any]) -> float:
    """Seconds until the object of `put` is on this node."""
    import ray

    start = time.perf_counter()
    ray.get(refs[0])
    return time.perf_counter() - start


class Peer:
    """One of two processes that sum a tensor."""

    def address(self) -> str:
        """tcp://HOST:PORT where the other process finds this one, with a port that is free now."""
        import ray

        host = str(ray.util.get_node_ip_address())
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, backend: str, size: int, limit: float) -> float:
        """Sum a tensor of `size` bytes over both processes, three times.

        Args:
            backend: "gloo" or "nccl".
            limit: seconds.

        Returns:
            Seconds of the fastest sum.

        Raises:
            ValueError: the sum is wrong.
        """
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        dist.init_process_group(backend, init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=limit))
        try:
            tensor = torch.ones(size // 4, device="cuda" if backend == "nccl" else "cpu")
            took = []
            for _ in range(4):  # the first one connects, and does not count
                start = time.perf_counter()
                dist.all_reduce(tensor)
                if backend == "nccl":
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - start)
            if tensor[0].item() != 16.0:
                raise ValueError(f"the sum over two processes is {tensor[0].item()}, not 16")
            return min(took[1:])
        finally:
            dist.destroy_process_group()
