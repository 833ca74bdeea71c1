"""Rows of results: which of them a table is made of, and how they are shown.

A line of a table is a mean over seeds with its standard deviation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import records

Record = dict[str, Any]
Records = list[Record]


def current(suite: str, key: tuple[str, ...], settings: Callable[[Record], Any]) -> Records:
    """The newest result of every cell, of those that were measured with today's settings.

    settings: the configuration that the cell of a row has today, whatever it had; None where there is no such cell.
    """
    return latest([row for row in records.read(suite) if row.get("config", {}) == settings(row)], key)


def latest(results: Records, key: tuple[str, ...]) -> Records:
    """The newest result of every cell."""
    return list({tuple(result[name] for name in key): result for result in results}.values())


def is_timed_beside_others(cell: Records) -> bool:
    """Whether other tasks ran while seconds were measured."""
    return any("tasks_at_once" in result for result in cell)


def headed(network: str, record: Record) -> str:
    """A network with what its drops are from, and on how many examples: the first column of a table."""
    return f"{network} ({record['float_top1']:.2f} %, {record['count']})"


def unique(results: Records, name: str) -> list[Any]:
    """What they have under a name, each once, in the order in which it is met first."""
    return list(dict.fromkeys(result[name] for result in results))


def spread(cell: Records, name: str, factor: float = 1.0) -> str:
    """Mean and deviation over the seeds of a cell."""
    values = [factor * result[name] for result in cell]
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} +- {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Over seeds; one seed has no deviation, and gets 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def ratio(logs: list[float], *, with_deviation: bool = True) -> str:
    """Geometric mean of quotients, given by their logarithms, with the deviation of these."""
    if not logs:
        return "-"
    deviation = f" +- {statistics.stdev(logs):.2f}" if with_deviation and len(logs) > 1 else ""
    return f"{math.exp(statistics.mean(logs)):.2f}{deviation}"
