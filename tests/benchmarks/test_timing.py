"""Medians of rounds, and processes that nothing else has run in."""

from __future__ import annotations

import os

from benchmarks.timing import in_fresh_process, medians, ratios

ROUNDS = [{"ours": 1.0, "other": 3.0}, {"ours": 10.0, "other": 40.0}, {"ours": 2.0, "other": 5.0}]


def test_ratios_are_those_within_a_round():
    assert medians(ROUNDS) == {"ours": 2.0, "other": 5.0}
    assert ratios(ROUNDS, "ours") == {"ours": 1.0, "other": 3.0}


def test_a_fresh_process_is_another_one_every_time():
    assert len({os.getpid(), in_fresh_process(os.getpid), in_fresh_process(os.getpid)}) == 3
