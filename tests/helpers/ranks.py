"""Worker processes of a gloo group, which start quickly: torch and the text tower's library are imported once for all."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

# What the server imports from which the processes are forked. It is loaded when the first of them starts.
PRELOADED = ["torch", "transformers.models.bert.modeling_bert", "brgsa_platform.training.loop"]


def run_ranks(work: Callable[..., None], *arguments: Any, world: int) -> None:
    """Call `work(rank, *arguments)` in so many processes, and wait for them; an exception in one ends all."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(work, args=arguments, nprocs=world, start_method="forkserver")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
