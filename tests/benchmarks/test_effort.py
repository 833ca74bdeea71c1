"""The benchmark of accuracy against time, whole, on a small network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.lowbits import Budget
from benchmarks.networks import OURS, REAL

from benchmarks import effort, figures, records
from tests.benchmarks.small import small_benchmark

BUDGETS = [Budget(images=64, steps=4, tuning_steps=0), Budget(images=128, steps=16, tuning_steps=0)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RESULTS", tmp_path_factory.mktemp("results"))
        patch.setattr(effort, "load_benchmarks", lambda names: iter([small_benchmark()]))
        assert figures.is_empty("effort")
        effort.run_suite(["small"], [0], [OURS, REAL], BUDGETS)
        yield records.read(effort.SUITE)


def test_every_budget_is_measured_once_and_shown(measured: list[dict[str, Any]]) -> None:
    assert not figures.is_empty("effort")
    assert [(cell["source"], cell["images"], cell["steps"]) for cell in measured] == [
        *((OURS, 64, 4), (OURS, 128, 16)),
        *((REAL, 64, 4), (REAL, 128, 16)),
    ]
    small, large, real, _ = measured
    assert 0 < small["seconds"]["images"] < large["seconds"]["images"]
    assert set(real["seconds"]) == {"learning"}
    effort.run_suite(["small"], [0], [OURS, REAL], BUDGETS)
    assert records.read(effort.SUITE) == measured
    rows = effort.effort_table().splitlines()[2:]
    assert [row.split(" | ")[1:4] for row in rows] == [
        ["64", "4", OURS],
        ["64", "4", REAL],
        ["128", "16", OURS],
        ["128", "16", REAL],
    ]
    curve = effort.curves()["small"][f"{OURS}, cpu"]
    assert [minutes for minutes, _, _ in curve] == [sum(cell["seconds"].values()) / 60 for cell in (small, large)]
    records.append(effort.SUITE, {**real, "device": "cuda:0 (Some Card)", "tasks_at_once": 4})
    beside = next(row for row in effort.effort_table().splitlines() if "Some Card" in row)
    assert beside.split(" | ")[3:7] == [REAL, "cuda:0 (Some Card)", "1", "beside others"]
    assert set(effort.curves()["small"]) == {f"{OURS}, cpu", f"{REAL}, cpu"}
    drawn = figures.svg("effort", "dark")
    records.append(effort.SUITE, {**large, "drop_points": 9.0})
    assert not figures.is_current("effort", drawn)


def test_images_of_a_small_budget_are_the_first_of_a_large_one(
    measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    effort.run_suite(["small"], [0], [OURS], BUDGETS[:1])
    (alone,) = records.read(effort.SUITE)
    assert (alone["source"], alone["images"]) == (measured[0]["source"], measured[0]["images"])
    assert alone["kl_to_float"] == measured[0]["kl_to_float"]
