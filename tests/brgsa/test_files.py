"""Files that are whole whenever they are there, and the JSON in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from brgsa.files import read_json, write_json, written_aside
from brgsa_platform.runtime.storage import Folder


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(IsADirectoryError), written_aside(file) as aside:  # noqa: PT012
        aside.write_text("half")
        tmp_path.write_text("fails")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_at_once(tmp_path: Path) -> None:
    with written_aside(tmp_path / "made") as aside:
        (aside / "below").mkdir(parents=True)
        (aside / "below" / "a.txt").write_text("whole")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "below" / "a.txt").read_text() == "whole"
    with pytest.raises(IsADirectoryError), written_aside(tmp_path / "other") as aside:  # noqa: PT012
        aside.mkdir()
        aside.write_text("fails")
    assert os.listdir(tmp_path) == ["made"]


@pytest.mark.parametrize("local_folder", [False, True])
def test_bytes_and_names_are_on_the_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_folder: bool
) -> None:
    done: list[Any] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    writing = Folder(tmp_path).written_aside("made") if local_folder else written_aside(tmp_path / "made")
    with writing as aside:
        aside.mkdir()
        (aside / "a.txt").write_text("whole")
    assert done == [aside / "a.txt", aside, "rename", tmp_path]


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None, "é"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "é"]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "é"]}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1]", b'{"a": "\xe9"}'])
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with refused("unreadable-json", field=str(file)) as caught:
        read_json(file, mend="fetch it again")
    assert str(caught.value).endswith("fetch it again.")
