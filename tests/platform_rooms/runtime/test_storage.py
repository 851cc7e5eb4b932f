"""What an object store's answer means."""

from __future__ import annotations

import pytest

from brgsa_platform.runtime.storage import is_away


@pytest.mark.parametrize(
    ("answer", "away"),
    [
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server", True),
        ("AWS Error SLOW_DOWN during PutObject operation", True),
        ("AWS Error ACCESS_DENIED during PutObject operation", False),
    ],
)
def test_only_a_store_that_is_away_is_asked_again(answer: str, away: bool) -> None:
    assert is_away(OSError(answer)) is away
