"""Rows that were measured again, beside those that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import main
from click.testing import CliRunner

from benchmarks import compare, records

ROW: dict[str, Any] = {
    "network": "net",
    "seed": 0,
    "config": {"count": 64, "seed": 0},
    "drop_points": 1.0,
    "seconds": 2.0,
    "scores": {"W8A8 mse": {"kl_to_float": 0.25, "drop_points": 1.5}},
    "environment": {"threads": 1},
}


def changed(**what: Any) -> dict[str, Any]:
    return {**ROW, **what}


@pytest.fixture
def again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four rows: as it was but for the time it took, another answer within, another cell, other settings."""
    worse = {"W8A8 mse": {"kl_to_float": 0.5, "drop_points": 1.5}}
    monkeypatch.setattr(records, "RESULTS", tmp_path / "again")
    for row in (changed(seconds=9.0), changed(scores=worse), changed(seed=1), changed(config={"count": 32})):
        records.append("suite", row)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "kept")
    records.append("suite", changed(drop_points=7.0))
    records.append("suite", ROW)
    return tmp_path / "again"


def test_answers_are_beside_the_newest_row_of_their_cell(again: Path) -> None:
    same, worse, other, shorter = compare.measured_again(again)
    assert (
        same.before
        == same.now
        == {"drop_points": 1.0, "scores.W8A8 mse.kl_to_float": 0.25} | {"scores.W8A8 mse.drop_points": 1.5}
    )
    assert worse.before == same.before
    assert str(worse) == "suite: net 0: scores.W8A8 mse.kl_to_float 0.25 -> 0.5"
    assert other.before is None
    assert shorter.before is None


def test_the_command_lists_what_differs(again: Path) -> None:
    lines = CliRunner().invoke(main, ["compare", str(again)]).output.splitlines()
    assert lines == [
        "suite: net 0: scores.W8A8 mse.kl_to_float 0.25 -> 0.5",
        "suite: net 1: not measured before",
        "suite: net 0: not measured before",
        "1 of 4 rows have the same answers to the last digit",
    ]
