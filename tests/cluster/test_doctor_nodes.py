"""The doctor on a Ray of two nodes, of which one is another, and then frozen (`make test-cluster`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import finish

from brgsa_platform.doctor.findings import FAIL, OK, WARN


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doctor found on two nodes: in a process of its own, which Ray's tokens of another test do not reach."""
    folder = tmp_path_factory.mktemp("user")
    script = Path(__file__).parents[1] / "helpers" / "doctor_on_two_nodes.py"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, str(script)], cwd=folder, env=environment, text=True, **pipes)
    out, err = finish(process, 300)
    assert process.returncode == 0, err
    assert list(folder.iterdir()) == []  # nothing is left behind
    tree: dict[str, Any] = json.loads(out.splitlines()[-1])
    return tree


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in rows}


@pytest.mark.ray
def test_two_nodes_of_which_one_is_another_and_then_freezes(two_nodes: dict[str, Any]) -> None:
    findings_by_name = by_name(two_nodes["both"])
    assert findings_by_name["nodes"]["found"].startswith("2 nodes answered: ")
    head, other = findings_by_name["nodes"]["found"].removeprefix("2 nodes answered: ").split(", ")
    assert head.endswith(" (head)")
    assert findings_by_name["versions"]["state"] == FAIL
    assert findings_by_name["versions"]["found"].endswith(f"; ffffffffffff on {other}")
    assert f"this process, {head}" in findings_by_name["versions"]["found"]
    assert findings_by_name["MLflow"]["state"] == FAIL
    assert "2 nodes" in findings_by_name["MLflow"]["found"]
    assert findings_by_name["all-reduce"]["state"] in (OK, WARN)
    assert f"({head} and {other})" in findings_by_name["all-reduce"]["found"]
    assert findings_by_name["runs"]["state"] != FAIL
    assert findings_by_name["shared memory"]["state"] != FAIL
    assert findings_by_name["clocks"]["state"] == OK
    assert findings_by_name["token"]["state"] == WARN
    assert two_nodes["status"] == 1

    frozen = by_name(two_nodes["frozen"])
    assert two_nodes["seconds"] < 30  # of a free machine: no look waits for the frozen node again
    assert frozen["nodes"]["found"].startswith(f"{other}: no answer to 'versions' within ")
    assert frozen["nodes"]["state"] == FAIL
    assert frozen["versions"]["state"] == OK
    assert frozen["runs"]["state"] != FAIL
    assert head in frozen["shared memory"]["found"]
