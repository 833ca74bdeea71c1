"""Seconds beside those of ours, from rounds made up here."""

from __future__ import annotations

import pytest

from benchmarks import speed
from tests.benchmarks.made_up import rows


def test_speed_is_a_median_of_ratios_within_a_round(store):
    taken = [{"dffg": 1.0, "zeroq": 100.0}, {"dffg": 2.0, "zeroq": 220.0}, {"dffg": 1.0, "zeroq": 120.0}]
    record = speed.describe("n", taken)
    assert record["seconds"] == {"dffg": 1.0, "zeroq": 120.0}
    assert record["times_ours"]["zeroq"] == 110.0
    assert record["seconds_per_pass"] == pytest.approx({"dffg": 1 / (4 * 64), "zeroq": 120 / (500 * 64)})
    store["speed"] = [record]
    assert rows(speed.speed_table())["n"] == ["1 s", "120 s (110x)"]
    store["speed"] = [speed.describe("n", [{"dffg": 1.0, "adam-snapshots": 0.75}])]
    assert rows(speed.speed_table())["n"] == ["1 s", "0.75 s (0.8x)"]
