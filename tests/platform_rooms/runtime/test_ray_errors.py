"""Where Ray cannot be joined or started, the cause is named at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from refusals import refused

from brgsa_platform.runtime import ray_errors

OTHER_GRPC = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2's first frame, as any gRPC server sends it


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that answers each connection with these bytes, then with silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            links = []
            while True:
                try:
                    links.append(server.accept()[0])
                except OSError:
                    return
                links[-1].sendall(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with refused("no-ray", field="RAY_ADDRESS", value=address) as closed:
            ray_errors.check_address(address)
        assert isinstance(closed.value.__cause__, ConnectionRefusedError)
        taken.listen()  # as a frozen process does: it accepts the connection, and says nothing
        with refused("no-ray", field="RAY_ADDRESS", value=address):
            ray_errors.check_address(address, 0.5)


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", OTHER_GRPC])
def test_something_that_is_not_ray_is_refused(scheme: str, answer: bytes) -> None:
    with answering(answer) as address, refused("no-ray", value=scheme + address):
        ray_errors.check_address(scheme + address, 0.5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_living_ray_passes() -> None:
    import ray

    ray_errors.check_address(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example/"])
def test_a_dashboard_is_no_address_of_a_cluster(address: str) -> None:
    with refused("dashboard-address", field="RAY_ADDRESS", value=address):
        ray_errors.check_address(address)


@pytest.mark.parametrize("address", ["not an address", "host:port", "127.0.0.1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with refused("no-ray", value=address):
        ray_errors.check_address(address, 2)


def test_auto_goes_by_rays_note_of_the_cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ray_errors.check_address("auto")  # no note: Ray itself looks for one
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    with refused("no-ray", value="127.0.0.1:1"):
        ray_errors.check_address("auto")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_deep_for_rays_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    deep = tmp_path / ("d" * ray_errors.LONGEST_FOLDER)
    deep.mkdir()
    monkeypatch.setenv(variable, str(deep))
    with refused("temporary-folder", field=variable, value=str(deep)):
        ray_errors.check_machine()


@pytest.mark.usefixtures("alone")
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "gone"))
    with refused("temporary-folder", field="RAY_TMPDIR"):
        ray_errors.check_machine()


@pytest.mark.parametrize(
    ("error", "address", "code"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9"), "h:6379", "ray-versions"),
        (ConnectionError("Could not find any running Ray instance."), "auto", "no-ray"),
        (RuntimeError("The current node timed out during startup."), "", "ray-start"),
    ],
)
def test_the_cause_decides_the_mend(error: Exception, address: str, code: str) -> None:
    assert ray_errors.start_refusal(error, address).code == code
