"""A few hundred random and damaged inputs for every parser; `python -m tests.fuzz` feeds more."""

from __future__ import annotations

import pytest

from tests.fuzz import NAMES, fuzz


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_in_is_read_or_refused(name: str) -> None:
    assert 0 <= fuzz(name, inputs=200) <= 200
