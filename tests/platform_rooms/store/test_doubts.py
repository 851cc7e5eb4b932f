"""What is doubtful in a store is counted, shown and repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import chest, save_manifest, save_scan, write_store

from brgsa_platform.store.doubts import Count, Doubts, doubts, warn_of_doubts
from brgsa_platform.store.store import Store


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four volumes: one is no chest in HU, two are files that are not there."""
    folder = tmp_path_factory.mktemp("doubtful")
    manifest = save_manifest(folder / "in", 4)
    save_scan(folder / "in" / "s001.nii.gz", chest() // 2 + 4000)
    for name in ("s002", "s003"):
        (folder / "in" / f"{name}.nii.gz").unlink()
    return Store.open(write_store(manifest, folder / "store"))


def test_flags_and_refusals_are_counted_with_an_example(doubtful: Store, capsys: pytest.CaptureFixture[str]) -> None:
    found = doubts(doubtful)
    assert {count.what: (count.volumes, count.share, count.example, count.doubt) for count in found.flags} == {
        "rescale:header": (2, 1.0, "s000", False),
        "geometry:header": (2, 1.0, "s000", False),
        "hu:implausible": (1, 0.5, "s001", True),
    }
    (refused,) = found.refused
    assert refused.what.startswith("read: ")
    assert (refused.volumes, refused.share, refused.example) == (2, 0.5, "s002")
    assert "s002" not in refused.what, "volumes of one reason are counted together"
    found.print()
    shown = capsys.readouterr().out
    for words in ("hu:implausible (doubt)", "50.0%", "s001", "s002", "Warning"):
        assert words in shown
    assert "Effusion" not in shown


def test_the_warning_is_repeated_where_many_volumes_share_a_doubt(
    doubtful: Store, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_doubts(doubtful)
    told = capsys.readouterr()
    assert told.out == ""
    assert "hu:implausible 50%" in told.err
    assert told.err.count("\n") == 1
    warn_of_doubts(Store.open(labelled))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("share", "doubt", "warned"), [(0.051, True, True), (0.05, True, False), (1.0, False, False)])
def test_from_which_share_a_doubt_is_warned_of(share: float, doubt: bool, warned: bool) -> None:
    counted = Doubts([Count("hu:implausible", 1, share, "a", doubt)], [])
    assert bool(counted.warning()) is warned
