"""A few hundred random and damaged inputs for every parser; `python -m tests.fuzz` feeds more."""

from __future__ import annotations

import pytest

from tests.fuzz import NAMES, fuzz


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_in_is_read_or_refused(name: str) -> None:
    refused = fuzz(name, inputs=200)
    assert refused < 200  # else nothing but the first check was tried
    assert refused > 0 or name == "checkpoint"  # what is damaged there is made again
