"""Rows of results: which of them a table is made of, and how they are shown.

A line of a table is a mean over seeds with its standard deviation.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

Records = list[dict[str, Any]]


def latest(results: Records, key: tuple[str, ...]) -> Records:
    """The newest result of every cell."""
    return list({tuple(result[name] for name in key): result for result in results}.values())


def is_timed_beside_others(cell: Records) -> bool:
    """Whether other tasks ran while seconds were measured."""
    return any("tasks_at_once" in result for result in cell)


def headed(network: str, record: dict[str, Any]) -> str:
    """A network with what its drops are from, and on how many examples: the first column of a table."""
    return f"{network} ({record['float_top1']:.2f} %, {record['count']})"


def unique(results: Records, name: str) -> list[Any]:
    return list(dict.fromkeys(result[name] for result in results))


def spread(cell: Records, name: str, factor: float = 1.0) -> str:
    values = [factor * result[name] for result in cell]
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} +- {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Over seeds; one seed has no deviation, and gets 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def ratio(logs: list[float], *, with_deviation: bool = True) -> str:
    if not logs:
        return "-"
    deviation = f" +- {statistics.stdev(logs):.2f}" if with_deviation and len(logs) > 1 else ""
    return f"{math.exp(statistics.mean(logs)):.2f}{deviation}"
