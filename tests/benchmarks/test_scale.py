"""The simulated cluster beside what can be worked out by hand, and the tables of its results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.cluster import Load, simulate

from benchmarks import records, scale

pytest.importorskip("simpy", reason="simpy is missing; it is in the extra dev")
LOAD = Load(tasks=40, work=[2.0], prepare=3.0, collect=0.5, sent=100.0, fetched=10.0, returned=20.0)


def test_one_worker_does_one_thing_after_the_other() -> None:
    found = simulate(LOAD, workers=1, bytes_per_second=100.0)
    # What a task returned travels while the next one asks for the link, which is then free after 0.2 s.
    assert found.seconds == pytest.approx(1.0 + 3.0 + 40 * (0.1 + 2.0) + 39 * 0.2 + 0.2 + 0.5)
    assert found.busy["workers"] == pytest.approx(80 / found.seconds)
    assert found.bottleneck == "workers"


def test_with_many_workers_the_one_that_collects_decides() -> None:
    found = simulate(LOAD, workers=40, bytes_per_second=1e9)
    assert found.seconds == pytest.approx(3.0 + 2.0 + 40 * 0.5, rel=1e-3)
    assert found.bottleneck == "collecting"


def test_a_slow_link_decides() -> None:
    found = simulate(LOAD, workers=40, bytes_per_second=10.0)
    assert found.seconds >= 40 * (100 + 10 + 20) / 10
    assert found.bottleneck == "link"


def test_twice_the_workers_take_half_the_time_while_they_are_the_bottleneck() -> None:
    free = replace(LOAD, prepare=0.0, collect=0.0, sent=0.0, fetched=0.0, returned=0.0)
    times = [simulate(free, workers=count, bytes_per_second=1.0).seconds for count in (1, 2, 4)]
    assert times == [80.0, 40.0, 20.0]


def test_times_are_drawn_from_the_measured_by_the_seed() -> None:
    drawn = replace(LOAD, work=[1.0, 3.0])
    first, again, other = (simulate(drawn, workers=2, bytes_per_second=1e9, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert 40 < first.busy["workers"] * 2 * first.seconds < 120


def test_tables_show_the_last_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert scale.scale_table().count("\n") == scale.scale_simulated_table().count("\n") == 1
    on = {
        "start_seconds": 3.04,
        "overhead_seconds": 0.0123,
        "nothing_seconds": 0.0045,
        "chains_seconds": 40.0,
        "chain_seconds": [9.0, 11.0],
        "prepare_seconds": 1.0,
        "collect_seconds": 0.1,
        "program_bytes": 1e6,
        "state_bytes": 1e6,
    }
    measured = {"chains": 4, "alone_seconds": 44.0, "on_1": on, "on_2": {**on, "chains_seconds": 22.0}}
    measured |= {"images_per_chain": 64, "job": {"seconds": 60.0, "bytes": 1e6}}
    (tmp_path / "scale.jsonl").write_text(json.dumps({**measured, "simulated": scale._simulated(measured)}) + "\n")
    table = scale.scale_table()
    assert "| a task of one second, beyond it | 1.2% | 1.2% |" in table
    assert "| 4 chains, s (44 without Ray) | 40 | 22 |" in table
    assert "| times as fast as without Ray | 1.10 | 2.00 |" in table
    simulated = scale.scale_simulated_table()
    assert "| 50,000 images | 100 | " in simulated
    assert "| 1,000 networks | 1 | 1000." in simulated
