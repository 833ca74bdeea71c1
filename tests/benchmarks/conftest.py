from __future__ import annotations

import pytest

from benchmarks import records


@pytest.fixture
def store(monkeypatch):
    """Results by suite, in place of those on disk."""
    results: dict[str, list[dict]] = {}
    monkeypatch.setattr(records, "read", lambda suite: results.get(suite, []))
    return results
