"""The exponent of a growth, and a measurement in a process of its own."""

from __future__ import annotations

import pytest

from benchmarks import growth


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_its_power(power):
    counts = [64, 256, 1024]
    assert growth.exponent(counts, [3 * count**power for count in counts]) == pytest.approx(power)


def test_the_table_has_the_last_measurement_of_every_count(monkeypatch):
    def record(count, seconds):
        return {"network": "net", "count": count, "made": count, "threads": 2, "seconds": seconds, "peak_bytes": 5e8}

    monkeypatch.setattr(growth.records, "read", lambda suite: [record(8, 9.0), record(16, 4.0), record(8, 1.0)])
    assert growth.growth_table().splitlines()[2:] == [
        "| net | 8 | 1.0 | 8.0 | 2.000 | 0.50 |",
        "| net | 16 | 4.0 | 4.0 | 2.000 | 0.50 |",
    ]
