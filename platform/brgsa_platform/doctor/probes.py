"""What `brgsa doctor` runs on a node: each probe looks at one thing and returns plain facts.

Ray gets these functions by value, so that they run on a node whose brgsa is another version, or absent: what a probe needs
is imported inside it.
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
UNLIMITED = 2**60  # cgroup v1 says "no limit" with a huge number
CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # v2, v1: a container's own


def versions() -> dict[str, str | None]:
    """Version of Python and of each package, and the commit of brgsa's code; None where it is missing or unknown."""
    import platform

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    try:
        from brgsa_platform.tracking.client import git_commit

        found["commit"] = git_commit()
    except ImportError:
        found["commit"] = None
    return found


def memory() -> dict[str, Any]:
    """Bytes of shared memory, of the container's limit, and of the disk that Ray spills to.

    `store_folder` and `spill_folder` are the raylet's own, this process' parent; None where there is no raylet.
    """
    raylet = raylet_options()
    spill = raylet.get("fallback_directory")
    disk = shutil.disk_usage(spill or "/tmp")
    found: dict[str, Any] = {
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
        found["shm_total"] = shutil.disk_usage(shm).total
        # Ray's own files there have no name any more: what has one belongs to others.
        found["shm_left_behind"] = sum(f.stat().st_blocks * 512 for f in shm.iterdir() if f.is_file())
    return found


def raylet_options() -> dict[str, str]:
    """Options that the raylet above this process was started with."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    if not words[0].endswith("raylet"):
        return {}
    return {key.removeprefix("--"): value for key, _, value in (word.partition("=") for word in words[1:])}


def memory_limit(limits: tuple[str, ...] = CGROUP_LIMITS) -> int:
    """Bytes that this container may use, the machine's where it has no limit of its own."""
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

    torch is imported only where there is a GPU to see: it takes seconds.

    Args:
        counted: GPUs that Ray counts on this node.
    """
    found: dict[str, Any] = {"listed": [], "driver": None, "driver_cuda": None, "torch_cuda": None, "seen": 0}
    spec = util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        found["torch_cuda"] = runpy.run_path(str(Path(spec.origin).parent / "version.py")).get("cuda")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = [line.split(", ") for line in _said(query).splitlines() if ", " in line]
        found["listed"] = [line[0] for line in lines]
        found["driver"] = lines[0][1] if lines else None
        version = re.search(r"CUDA Version:\s*([\d.]+)", _said(["nvidia-smi"]))
        found["driver_cuda"] = version[1] if version else None
    if (found["listed"] or counted) and spec is not None:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden == "":  # Ray hides GPUs from a task that asked for none
            del os.environ["CUDA_VISIBLE_DEVICES"]
        import torch

        found["seen"] = torch.cuda.device_count()
        if hidden == "":
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    return found


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def clock() -> float:
    """Seconds since 1970 by this node's clock."""
    return time.time()


def storage(url: str, size: int, mark: str | None = None, expected: str = "") -> dict[str, Any]:
    """Whether a folder holds the file `mark` as another node wrote it, and speeds of writing and reading `size` bytes there.

    The bytes are written aside, brought to the disk, renamed, read back and removed. `error` says what did not work.
    Speeds are in MB/s. An object store is asked for a quarter of the size: it may be far away.
    """
    from brgsa_platform.runtime.storage import Folder, short_error

    found: dict[str, Any] = {"seen": True, "write": None, "read": None, "error": None}
    name = f".brgsa-doctor-{uuid.uuid4().hex}"
    try:
        folder = Folder(url)
        if mark is not None:
            found["seen"] = folder.exists(mark) and folder.read(mark).decode("utf-8") == expected
            if not found["seen"]:
                return found
        size = size // 4 if folder.remote else size
        block = os.urandom(2**20) * (size // 2**20)
        start = time.perf_counter()
        with folder.written_aside(name) as aside, aside.open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        found["write"] = size / 1e6 / (time.perf_counter() - start)
        try:
            if not folder.remote:
                _forget(folder.at(name))
            start = time.perf_counter()
            same = folder.read(name) == block
            found["read"] = size / 1e6 / (time.perf_counter() - start)
            if not same:
                found["error"] = "what was read back is not what was written"
        finally:
            folder.delete(name)
    except Exception as error:  # the folder's, its file system's or the network's: all of them are what was found
        found["error"] = short_error(error)
    return found


def _forget(path: str) -> None:
    """Drop a file from the page cache: reading it back is to measure the disk."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tracking_answer(uri: str, experiment: str) -> dict[str, Any]:
    """Seconds until the tracking store answered a question that needs credentials, or the `error` and, where the error
    itself tells it, its `mend`; no store is made."""
    from brgsa.errors import UserError
    from brgsa_platform.tracking import client as tracking

    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.is_file():
        folder = next(parent for parent in path.parents if parent.is_dir())
        can = os.access(folder, os.W_OK)
        return {"seconds": None, "error": None if can else f"{folder} cannot be written"}
    try:
        api = tracking.client(uri)
        start = time.perf_counter()
        api.get_experiment_by_name(experiment)
        return {"seconds": time.perf_counter() - start, "error": None}
    except UserError as error:
        why, _, mend = str(error).partition(": ")  # as every UserError is made
        return {"seconds": None, "error": why, "mend": mend[:1].upper() + mend[1:]}
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return {"seconds": None, "error": f"{type(error).__name__}: {re.sub(r'//[^/@ ]*@', '//', line)[:200]}"}


def put(size: int) -> tuple[list[Any], float]:
    """An object of so many bytes in this node's object store, in a list so that Ray hands on where it lies; seconds it took."""
    import numpy as np
    import ray

    block = np.ones(size, np.uint8)
    start = time.perf_counter()
    return [ray.put(block)], time.perf_counter() - start


def get(refs: list[Any]) -> float:
    """Seconds until that object is here."""
    import ray

    start = time.perf_counter()
    ray.get(refs[0])
    return time.perf_counter() - start


class Peer:
    """One of two processes that sum a tensor."""

    def address(self) -> str:
        """Where the other one finds this one: the port is free now."""
        import ray

        host = str(ray.util.get_node_ip_address())
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, backend: str, size: int, limit: float) -> float:
        """Seconds of the fastest of three sums of `size` bytes over both processes."""
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        dist.init_process_group(backend, init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=limit))
        try:
            tensor = torch.ones(size // 4, device="cuda" if backend == "nccl" else "cpu")
            took = []
            for _ in range(4):  # the first one connects
                start = time.perf_counter()
                dist.all_reduce(tensor)
                if backend == "nccl":
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - start)
            if tensor[0].item() != 16.0:
                raise ValueError(f"two processes' sum is {tensor[0].item()}, not 16")
            return min(took[1:])
        finally:
            dist.destroy_process_group()
