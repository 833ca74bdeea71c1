"""Seconds that are measured round by round, in turns, and in processes that nothing else has run in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Round = dict[str, float]
Result = TypeVar("Result")


def medians(rounds: list[Round]) -> Round:
    """Of every part, over the rounds."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def ratios(rounds: list[Round], beside: str) -> Round:
    """Of every part to the one that is named: medians of the ratios within a round, since what disturbs a round
    disturbs all of it."""
    return {name: statistics.median(one[name] / one[beside] for one in rounds) for name in rounds[0]}


def in_fresh_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """What no earlier work has warmed up, and whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()
