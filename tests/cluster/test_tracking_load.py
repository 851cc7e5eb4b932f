"""The tracking server under load: many processes that log for minutes, and its pages meanwhile (`make test-cluster`).

BRGSA_LOAD_SECONDS and BRGSA_LOAD_PROCESSES make it shorter or smaller.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import postgres
from tracking_server import PASSWORD, TrackingServer

from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query

SECONDS = int(os.environ.get("BRGSA_LOAD_SECONDS", "120"))
PROCESSES = int(os.environ.get("BRGSA_LOAD_PROCESSES", "32"))
STEPS_PER_S = 10
NAMES = ("step/loss", "step/lr")  # with ten steps a second 20 points a second
STEPS = SECONDS * STEPS_PER_S
WITHIN_S = 2.0

# Forked after the imports: two cores would take a minute to import MLflow 32 times.
fork = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    with postgres() as database:
        made = TrackingServer(tmp_path, database, workers=int(os.environ.get("BRGSA_LOAD_WORKERS", "2")))
        made.start()
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, made.client_environment[name])
        yield made
        made.stop()


def log_steps(run_id: str, uri: str, begin: float, queue: Any) -> None:
    """Each step at its time; one that comes late because a call was slow is logged all the same."""
    run = tracking.attach(run_id, uri)
    slowest, behind, cpu = 0.0, 0.0, time.process_time()
    for step in range(STEPS):
        due = begin + step / STEPS_PER_S
        time.sleep(max(0.0, due - time.time()))
        behind = time.time() - due
        started = time.monotonic()
        run.log_metrics({name: step + i / 10 for i, name in enumerate(NAMES)}, step=step)
        slowest = max(slowest, time.monotonic() - started)
    run.close()
    queue.put(
        {
            "slowest_call_s": slowest,
            "behind_s": behind,
            "late_s": time.time() - begin - SECONDS,
            "cpu_s": time.process_time() - cpu,
        }
    )


@dataclass
class Look:
    """One look at a page: when, how long, and whether it was answered."""

    at: float
    seconds: float
    answered: bool


def look_at_pages(url: str, experiment: str, end: Event, queue: Any) -> None:
    """What a person looking at the runs asks of the server, once a second."""
    headers = {
        "Authorization": "Basic " + b64encode(f"admin:{PASSWORD}".encode()).decode(),
        "Content-Type": "application/json",
    }
    search = json.dumps({"experiment_ids": [experiment], "max_results": 100}).encode()
    pages = {"/": None, "/ajax-api/2.0/mlflow/runs/search": search}
    looks: dict[str, list[Look]] = {page: [] for page in pages}
    while not end.wait(1.0):
        for page, body in pages.items():
            started, answered = time.time(), True
            try:
                with urllib.request.urlopen(urllib.request.Request(url + page, body, headers), timeout=60) as answer:
                    answer.read()
            except OSError:
                answered = False
            looks[page].append(Look(started, time.time() - started, answered))
    queue.put(looks)


def page_figures(looks: list[Look], begin: float) -> dict[str, Any]:
    """How fast a page answered, in seconds; `begin` is when the load began."""
    seconds = [look.seconds for look in looks]
    return {
        "looks": len(looks),
        "unanswered": sum(not look.answered for look in looks),
        **{f"p{q}": round(float(np.percentile(seconds, q)), 3) for q in (50, 95, 99, 100)},
        "slow_after_s": [round(look.at - begin) for look in looks if look.seconds > WITHIN_S / 2],
    }


@pytest.mark.parametrize("restart", [False, True], ids=["throughout", "restarted"])
def test_nothing_is_lost_and_the_pages_answer(
    server: TrackingServer, restart: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for number in range(PROCESSES):
        with tracking.run("train", name=f"load {number}") as run:
            runs.append(run.run_id)
    experiment = connection.client().get_experiment_by_name(connection.experiment_name())
    connection.unchecked_client.cache_clear()
    queue, looked, end = fork.Queue(), fork.Queue(), fork.Event()
    begin = time.time() + 3
    cpu_before = server.cpu_seconds()
    loggers = [
        fork.Process(target=log_steps, args=(run, server.url, begin + i / PROCESSES, queue))
        for i, run in enumerate(runs)
    ]
    looker = fork.Process(target=look_at_pages, args=(server.url, experiment.experiment_id, end, looked))
    for process in [*loggers, looker]:
        process.start()
    away = (0.0, 0.0)
    if restart:
        time.sleep(SECONDS / 2)
        stopped = time.time()
        server.stop()
        server.start()
        away = (stopped, time.time())
    told = [queue.get(timeout=SECONDS * 3 + 120) for _ in loggers]
    cpu = {"server": server.cpu_seconds() - cpu_before, "clients": sum(one.pop("cpu_s") for one in told)}
    end.set()
    looks = looked.get(timeout=120)
    for process in [*loggers, looker]:
        process.join(timeout=60)

    figures: dict[str, Any] = {
        "processes": PROCESSES,
        "seconds": SECONDS,
        "points_sent": PROCESSES * STEPS * len(NAMES),
        "points_lost": 0,
        "away_s": round(away[1] - away[0], 1),
        "load_of_the_machine": round(os.getloadavg()[0], 1),
        "cpu_s": {name: round(spent) for name, spent in cpu.items() if not restart or name != "server"},
        **{name: round(max(one[name] for one in told), 2) for name in told[0]},
    }
    for run_id in runs:
        for i, name in enumerate(NAMES):
            points = query.metric_history(run_id, name)
            assert len(points) == len(set(points)), "a point stands there twice"
            figures["points_lost"] += len({(step, step + i / 10) for step in range(STEPS)} - set(points))
    for page, all_looks in looks.items():
        figures[page] = page_figures(
            [look for look in all_looks if not away[0] - WITHIN_S <= look.at <= away[1]], begin
        )
    with capsys.disabled():
        print("\n" + json.dumps(figures, indent=1))
    assert figures["points_lost"] == 0
    for page in looks:
        assert figures[page]["unanswered"] == 0
        assert figures[page]["p100"] <= WITHIN_S
