"""Addresses of this machine, and addresses with a password in them."""

from __future__ import annotations

import pytest

from brgsa_platform.runtime.addresses import has_credentials, hide_credentials, is_loopback, without_credentials


@pytest.mark.parametrize(
    "address",
    ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.2:8265", "::1", "[::1]:5000", "http://127.0.0.1:5000/x", "http://[::1]"],
)  # fmt: skip
def test_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["", "0.0.0.0", "::", "[::]:80", "10.0.0.1:8265", "localhost.example.org", "127.0.0.1.nip.io", "http://mlflow:5000/127.0.0.1"],
)  # fmt: skip
def test_no_loopback(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    "text",
    ["http://u:secret@host:5000", "https://token@host", "--data=s3://key:secret@b/x", "postgresql://:secret@host", "see http://u:p@h"],
)  # fmt: skip
def test_credentials_are_seen(text: str) -> None:
    assert has_credentials(text)


@pytest.mark.parametrize(
    "text",
    ["http://host:50/path", "s3://bucket/a@b:c", "hdfs://user@node:8020/data", "http://host/a:b@c", "a@example.org", "a:b@c"],
)  # fmt: skip
def test_no_credentials(text: str) -> None:
    assert not has_credentials(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@host:5000/path", "http://host:5000/path"),
        ("postgresql://host/x?user=u&password=secret", "postgresql://host/x"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////tmp/a b.db", "sqlite:////tmp/a b.db"),
    ],
)
def test_what_may_stand_on_a_screen(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_a_text_is_shown_without_what_its_addresses_hide() -> None:
    text = "read s3://me:secret@b/x?key=hidden and https://token@h/y, not hdfs://node/z"
    assert hide_credentials(text) == "read s3://b/x and https://h/y, not hdfs://node/z"
