"""A cluster that is not there, event by event: workers, the one process that collects, and its link to the workers."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

MEGABIT = 1e6 / 8


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one task costs, in seconds and bytes.

    work: measured times, drawn with replacement. prepare: of a worker, before its first task. collect: of the process
    that collects. sent: to a worker, once; fetched: by the worker for every task; returned: with every task.
    """

    tasks: int
    work: Sequence[float]
    prepare: float
    collect: float
    sent: float
    fetched: float
    returned: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Seconds until the last result is there, and the share of them in which each part was busy."""

    seconds: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The part that is busiest."""
        return max(self.busy, key=lambda part: self.busy[part])


def simulate(load: Load, *, workers: int, bytes_per_second: float, seed: int = 0) -> Outcome:
    """Run all tasks. Transfers share the link one after the other, which takes as long as side by side."""
    import simpy

    environment = simpy.Environment()
    idle, link, collector = simpy.Store(environment), simpy.Resource(environment), simpy.Resource(environment)
    choose, busy = random.Random(seed), dict.fromkeys(("workers", "link", "collecting"), 0.0)

    def use(resource: Any, part: str, seconds: float) -> Generator[Any, Any, None]:
        with resource.request() as turn:
            yield turn
            yield environment.timeout(seconds)
            busy[part] += seconds

    def task(work: float) -> Generator[Any, Any, None]:
        prepared = yield idle.get()
        if not prepared:
            yield from use(link, "link", load.sent / bytes_per_second)
            yield environment.timeout(load.prepare)
        yield from use(link, "link", load.fetched / bytes_per_second)
        yield environment.timeout(work)
        busy["workers"] += work / workers
        idle.put(True)
        yield from use(link, "link", load.returned / bytes_per_second)
        yield from use(collector, "collecting", load.collect)

    idle.items.extend([False] * workers)
    for work in choose.choices(list(load.work), k=load.tasks):
        environment.process(task(work))
    environment.run()
    return Outcome(seconds=environment.now, busy={part: spent / environment.now for part, spent in busy.items()})
