"""The whole command in a process of its own, and ranges beside the images they are chosen from."""

from __future__ import annotations

import pytest

from benchmarks import command, ranges, records

STAGES = {
    "capture": 2.0, "synthesis": 5.0, "calibration": 1.0, "learning": 0.0, "held_out_images": 5.0, "export": 7.0,
    "verify": 3.0, "total": 23.5, "first_pass": 5.5,
}  # fmt: skip


def test_seconds_are_medians_and_the_peak_is_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    taken = [
        {"seconds": {**STAGES, "all": all_}, "peak_bytes": peak, "environment": {"threads": 2}}
        for all_, peak in ((30.0, 2e9), (28.0, 1.9e9))
    ]
    row = {
        "network": "net",
        "threads": 2,
        **command.describe([*taken, {"seconds": {**STAGES, "all": 9}, "peak_bytes": 0, "environment": {}}]),
    }
    records.append(command.SUITE, {**row, "memory_limit": None, **command.describe(taken[:1])})
    records.append(command.SUITE, {**row, "memory_limit": None})
    records.append(command.SUITE, {**row, "memory_limit": "1GB", **command.describe(taken[1:])})
    assert command.command_table().splitlines()[2:] == [
        "| at most, on efficientnet_lite0 | - | 2 | - | 6 | - | 12 | - | - | 12 | 35 | 1.5 |",
        "| net | - | 2 | 3 | 5.5 | 2.0 | 5.0 | 1.0 | 5.0 | 10.0 | 28.0 | 2.00 |",
        "| net | 1GB | 2 | 1 | 5.5 | 2.0 | 5.0 | 1.0 | 5.0 | 10.0 | 28.0 | 1.90 |",
    ]


def test_settings_take_turns_at_being_first(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    asked = []

    def measured(network, limit, threads):
        asked.append(limit)
        return {"seconds": {"all": 1.0}, "peak_bytes": 1, "environment": {"threads": threads}}

    monkeypatch.setattr(command, "measure", measured)
    command.run_suite(["net"], threads=2, rounds=2)
    assert asked == [None, "1GB", "1GB", None]
    rows = records.read(command.SUITE)
    assert [(row["memory_limit"], len(row["rounds"])) for row in rows] == [(None, 2), ("1GB", 2)]
    assert rows[0]["environment"] == {"threads": 2}


def test_the_first_pass_begins_after_capture_and_before_the_end(monkeypatch):
    monkeypatch.setitem(command.NETWORKS, "small", ["tests.benchmarks.small:network", "--input", "3x8x8"])
    measured = command.measure("small", "1GB", 1)
    seconds = measured["seconds"]
    stages = ("capture", "synthesis", "calibration", "held_out_images", "export", "verify")
    assert seconds["capture"] < seconds["first_pass"] < seconds["all"] - seconds["export"]
    assert sum(seconds[stage] for stage in stages) <= seconds["total"] < seconds["all"]
    assert measured["peak_bytes"] > 2e8


def test_a_command_that_fails_is_no_row(monkeypatch):
    monkeypatch.setitem(command.NETWORKS, "none", ["demo:none"])
    with pytest.raises(RuntimeError, match="demo:none"):
        command.measure("none", None, 1)


def test_shares_are_medians_of_those_within_a_round(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    taken = [
        {"synthesis": made, "ranges": chosen, "calibration": 2 * chosen}
        for made, chosen in ((1.0, 0.05), (10.0, 0.8), (2.0, 0.5))
    ]
    records.append(ranges.SUITE, {"network": "net", "threads": 2, **ranges.describe(taken)})
    assert ranges.ranges_table().splitlines()[2:] == [
        "| at most | - | - | - | - | 10% | - | - |",
        "| net | 2 | 3 | 2.00 | 0.50 | 8.0% | 1.00 | 16.0% |",
    ]
