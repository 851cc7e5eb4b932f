"""A refusal, asserted by its code, field and value instead of its wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from brgsa.errors import UserError


@contextmanager
def refused(code: str, **named: Any) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises a UserError of this code, whose other attributes (`field`, `value`, `path`) are as named."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    assert {name: getattr(caught.value, name) for name in named} == named
