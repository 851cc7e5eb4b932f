"""`brgsa doctor`: what facts mean, and what probes see here."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from commandline import brgsa

from brgsa_platform.doctor import doctor, findings, probes
from brgsa_platform.doctor.findings import FAIL, GIB, OK, WARN, Finding
from brgsa_platform.doctor.nodes import AllReduce, LocalMachine, ProbeFailure, run_with_timeout

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "brgsa-platform": "0.1.0", "commit": "a" * 40}
MEMORY = {
    "limit": 16 * GIB, "store_folder": "/dev/shm", "spill_folder": "/tmp/ray", "disk_total": 100 * GIB,
    "disk_free": 50 * GIB, "shm_total": 8 * GIB, "shm_left_behind": 0,
}  # fmt: skip
GPU = {"listed": ["H100"], "driver": "550.54", "driver_cuda": "12.4", "torch_cuda": "12.4", "seen": 1}
CPU = {"listed": [], "driver": None, "driver_cuda": None, "torch_cuda": None, "seen": 0}
FAST = {"seen": True, "write": 300.0, "read": 500.0, "error": None}


def one(judged_findings: list[Finding]) -> Finding:
    """The only finding; a bad one has a mend of one sentence, a good one none."""
    assert len(judged_findings) == 1, judged_findings
    assert judged_findings[0].state == OK or judged_findings[0].mend.endswith(".")
    assert judged_findings[0].state != OK or not judged_findings[0].mend
    return judged_findings[0]


def test_versions_that_differ_name_both_nodes() -> None:
    assert one(findings.judge_versions({"a": VERSIONS, "b": VERSIONS})).state == OK
    other = one(findings.judge_versions({"a": VERSIONS, "b": {**VERSIONS, "ray": "2.59.0"}}))
    assert (other.state, other.found) == (FAIL, "ray: 2.60.0 on a; 2.59.0 on b")
    commit = one(findings.judge_versions({"a": VERSIONS, "b": {**VERSIONS, "commit": "b" * 40}, "c": VERSIONS}))
    assert (commit.state, commit.found) == (FAIL, "commit: aaaaaaaaaaaa on a, c; bbbbbbbbbbbb on b")
    assert one(findings.judge_versions({"a": VERSIONS, "b": {**VERSIONS, "commit": None}})).state == OK
    absent = one(findings.judge_versions({"a": VERSIONS, "b": {**VERSIONS, "torch": None}}))
    assert (absent.state, absent.found) == (FAIL, "torch: 2.13.0 on a; missing on b")


def test_gpus_that_ray_counts_and_torch_does_not_see() -> None:
    none = one(findings.judge_gpus({"a": CPU}, {"a": 0}))
    assert none.state == OK
    assert "no GPU" in none.found
    assert one(findings.judge_gpus({"a": GPU, "b": CPU}, {"a": 1, "b": 0})).state == OK
    assert one(findings.judge_gpus({"a": CPU}, {"a": 1})).state == FAIL
    blind = one(findings.judge_gpus({"a": {**GPU, "seen": 0, "torch_cuda": None}}, {"a": 1}))
    assert blind.state == FAIL
    assert "torch built without CUDA" in blind.found
    assert one(findings.judge_gpus({"a": {**GPU, "seen": 4}}, {"a": 2})).state == WARN
    drivers = findings.judge_gpus({"a": GPU, "b": {**GPU, "driver": "535.1"}}, {"a": 1, "b": 1})
    assert drivers[0].state == WARN
    assert "550.54 on a; driver 535.1 on b" in drivers[0].found


def test_shared_memory_that_does_not_hold_the_object_store() -> None:
    def judged(store: float = 5 * GIB, **facts: Any) -> Finding:
        return one(findings.judge_shared_memory({"a": {**MEMORY, **facts}}, {"a": store}))

    assert judged().state == OK
    assert judged(shm_total=64 * 2**20).state == FAIL
    slow = judged(shm_total=64 * 2**20, store_folder="/tmp")
    assert slow.state == WARN
    assert "lies in /tmp" in slow.found
    assert "5.5 GiB of /dev/shm" in slow.mend
    assert judged(shm_left_behind=4 * GIB).state == WARN


def test_where_no_node_answers_nothing_is_claimed() -> None:
    """A busy cluster may miss a limit: then there is neither "no GPU" nor "no /dev/shm"."""
    silent = {"a": ProbeFailure("no answer within 10 s")}
    for judge in (findings.judge_shared_memory, findings.judge_gpus):
        assert judge({}, {}) == []
        assert [finding.state for finding in judge(silent, {})] == [FAIL]
    assert findings.judge_memory(silent, {}, {}) == findings.judge_disk(silent, {}) == []
    assert findings.judge_transfers({}, 2**26, 0) == []


def test_memory_limit_and_spill_disk() -> None:
    stores = {"a": 5 * GIB}
    assert one(findings.judge_memory({"a": MEMORY}, {"a": 11 * GIB}, stores)).state == OK
    over = one(findings.judge_memory({"a": MEMORY}, {"a": 20 * GIB}, stores))
    assert over.state == FAIL
    assert "limit 16.0 GiB, but Ray hands out 25.0 GiB" in over.found
    assert one(findings.judge_disk({"a": MEMORY}, stores)).state == OK
    assert one(findings.judge_disk({"a": {**MEMORY, "disk_free": 4 * GIB}}, stores)).state == FAIL
    assert (
        one(findings.judge_disk({"a": {**MEMORY, "disk_total": 20 * GIB, "disk_free": 4 * GIB}}, stores)).state == WARN
    )


def test_storage_that_a_node_does_not_see() -> None:
    def judged(here: Any = FAST, **nodes: Any) -> Finding:
        return one(findings.judge_storage("runs", "/data/runs", here, nodes))

    assert judged(a=FAST).found == "/data/runs: write 300 MB/s, read 500 MB/s, seen from every node"
    blind = judged(a=FAST, b={"seen": False, "write": None, "read": None, "error": None})
    assert blind.state == FAIL
    assert blind.found.endswith("on b")
    refused = judged(a={**FAST, "write": None, "read": None, "error": "Permission denied"})
    assert (refused.state, refused.found) == (FAIL, "/data/runs on a: Permission denied")
    assert judged({**FAST, "error": "No space left on device"}).state == FAIL
    assert judged(ProbeFailure("no answer within 20 s")).state == FAIL
    slow = judged(a={**FAST, "write": 3.0})
    assert slow.state == WARN
    assert "a can write only 3 MB/s" in slow.found


def test_mlflow_of_one_machine_and_credentials() -> None:
    def judged(shown: str, nodes: int, **answers: Any) -> Finding:
        return one(findings.judge_tracking(shown, answers, nodes))

    answered = {"seconds": 0.1, "error": None}
    assert judged("sqlite:///x/mlflow.db", 1, here=answered).state == OK
    assert judged("sqlite:///x/mlflow.db", 2, here=answered).state == FAIL
    assert judged("http://host:5000", 2, here=answered, a=answered).state == OK
    refused = judged("http://host:5000", 2, here=answered, a={"seconds": None, "error": "failed with error code 401"})
    assert refused.state == FAIL
    assert "from a" in refused.found
    assert "MLFLOW_TRACKING_USERNAME" in refused.mend
    assert judged("http://host:5000", 1, here={"seconds": 3.0, "error": None}).state == WARN


def test_clocks_apart_more_than_the_way_may_explain() -> None:
    assert one(findings.judge_clocks({"a": (0.2, 0.01), "b": (-0.2, 0.01)})).state == OK
    skewed = one(findings.judge_clocks({"a": (0.4, 0.01), "b": (-0.4, 0.01)}))
    assert (skewed.state, skewed.found) == (WARN, "the clock of a is 0.8 s ahead of that of b")
    assert one(findings.judge_clocks({"a": (0.8, 0.5)})).state == OK


def test_transfers_all_reduce_and_access() -> None:
    size = 2**26
    assert one(findings.judge_transfers({("a", "b"): 900.0, ("b", "a"): 700.0}, size, 2)).found.startswith(
        "64 MiB at 700 MB/s b to a"
    )
    assert one(findings.judge_transfers({("a", "b"): 20.0}, size, 1)).state == WARN
    assert one(findings.judge_transfers({("a", "b"): ProbeFailure("GetTimeoutError")}, size, 1)).state == FAIL
    assert "1.34 GB/s (a and b)" in one(findings.judge_all_reduce(AllReduce("gloo", ("a", "b"), 0.05), size)).found
    assert one(findings.judge_all_reduce(AllReduce("gloo", ("a", "b"), 5.0), size)).state == WARN
    assert one(findings.judge_all_reduce(None, size)).state == WARN
    assert one(findings.judge_all_reduce(ProbeFailure("GetTimeoutError"), size)).state == FAIL

    def states(token: bool, dashboard: str | None) -> list[str]:
        return [finding.state for finding in findings.judge_access(token, dashboard)]

    assert states(True, "127.0.0.1:8265") == [OK, OK]
    assert states(False, None) == [WARN, OK]
    assert states(True, "10.0.0.4:8265") == [OK, WARN]


def test_memory_limits_of_both_cgroup_versions(tmp_path: Path) -> None:
    v2, v1 = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    machine = probes.memory_limit(())
    v2.write_text("max\n")
    v1.write_text("9223372036854771712\n")
    assert probes.memory_limit((str(v2), str(v1))) == machine
    v1.write_text("268435456\n")
    assert probes.memory_limit((str(v2), str(v1))) == 2**28
    v2.write_text("134217728\n")
    assert probes.memory_limit((str(v2), str(v1))) == 2**27


def test_a_driver_is_read_and_torch_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: a script says what nvidia-smi says, and torch sees none of it."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\n[ $# = 0 ] && echo "| Driver Version: 550.54  CUDA Version: 12.4 |" || echo "H100, 550.54"\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    node = probes.gpus(1.0)
    assert (node["listed"], node["driver"], node["driver_cuda"]) == (["H100"], "550.54", "12.4")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    built_without_cuda = {**node, "torch_cuda": None, "seen": 0}
    assert one(findings.judge_gpus({"a": built_without_cuda}, {"a": 1.0})).state == FAIL


def test_storage_is_written_read_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("here")
    done = probes.storage(str(tmp_path), 2**21, "mark", "here")
    assert done["seen"]
    assert done["error"] is None
    assert min(done["write"], done["read"]) > 0
    assert not probes.storage(str(tmp_path), 2**21, "mark", "another")["seen"]
    assert not probes.storage(str(tmp_path), 2**21, "absent", "here")["seen"]
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]
    assert probes.storage(str(tmp_path / "mark" / "below"), 2**21)["error"] == "Not a directory"


def test_a_tracking_store_is_looked_at_and_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert probes.tracking_answer(uri, "brgsa") == {"seconds": None, "error": None}
    assert list(tmp_path.iterdir()) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://me:secretword@127.0.0.1:{taken.getsockname()[1]}"
        answer = probes.tracking_answer(url, "brgsa")
    assert answer["error"].endswith("does not answer")
    assert answer["mend"].startswith("Start it, ")
    assert "secretword" not in str(answer)


def test_work_that_hangs_or_fails_is_given_up() -> None:
    over = threading.Event()
    try:
        assert isinstance(run_with_timeout(0.2, lambda: over.wait(600)), ProbeFailure)  # and not after 600 s
    finally:
        over.set()
    failed = run_with_timeout(60, lambda: 1 // 0)
    assert isinstance(failed, ProbeFailure)
    assert failed.reason.startswith("ZeroDivisionError: ")


def test_a_machine_without_ray_is_asked_too() -> None:
    (answer,) = LocalMachine().ask(probes.versions, 60).values()
    assert answer["ray"]


def test_the_table_has_a_mend_below_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_findings(
        [Finding("clocks", OK, "at most 3 ms apart"), Finding("MLflow", FAIL, "[no] answer", "Start it.")]
    )
    table, _, counted = capsys.readouterr().out.rstrip().rpartition("\n")
    lines = [line.split() for line in table.splitlines()]
    assert ["fail", "MLflow", "[no]", "answer"] in lines
    assert lines[lines.index(["fail", "MLflow", "[no]", "answer"]) + 1] == ["→", "Start", "it."]
    assert counted == "1 failed, 0 warned, 1 fine."


def test_a_wrong_address_is_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # the verb sets it
    assert brgsa("doctor", "--ray", "http://127.0.0.1:8265").status == 2
