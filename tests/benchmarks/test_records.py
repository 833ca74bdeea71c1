"""Results on disk, also after a process that died while it wrote one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import records


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a suite with two results."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    for number in (1, 2):
        records.append("suite", {"number": number, "environment": {"cpu": "any"}})
    return tmp_path / "suite.jsonl"


def numbers() -> list[int]:
    return [record["number"] for record in records.read("suite")]


def test_results_come_back_in_order(suite: Path) -> None:
    assert numbers() == [1, 2]
    assert records.read("another") == []


@pytest.mark.parametrize("end", ['{"number": 3, "envir', "{"])
def test_half_a_line_at_the_end_makes_way_for_the_next(suite: Path, end: str) -> None:
    suite.write_text(suite.read_text() + end)
    assert numbers() == [1, 2]
    records.append("suite", {"number": 4, "environment": {"cpu": "any"}})
    assert numbers() == [1, 2, 4]


def test_a_broken_line_elsewhere_is_an_error(suite: Path) -> None:
    first, second = suite.read_text().splitlines()
    suite.write_text(f"{first[:9]}\n{second}\n")
    with pytest.raises(json.JSONDecodeError):
        numbers()
