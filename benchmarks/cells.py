"""Cells of a benchmark, one after the other or as tasks of Ray: the same rows either way, but for the seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from benchmarks import records
from dffg.machine.distributed import Workers

Row = dict[str, Any]
Shared = TypeVar("Shared")
Prepared = TypeVar("Prepared")
Item = TypeVar("Item")


class Skipped(Exception):  # noqa: N818
    """What cannot be measured here, and why."""


def measure(
    suite: str,
    function: Callable[[Prepared, Item], Iterator[Row]],
    items: list[Item],
    *,
    prepare: Callable[[Shared], Prepared],
    shared: Shared,
    show: Callable[[Row], str] = str,
    workers: Workers | None = None,
) -> None:
    """Append the rows of `function(prepare(shared), item)` for every item, as they come, and print them.

    With workers an item is a task, every worker prepares once, and this process alone appends. Seconds in such rows
    were measured beside other tasks; `tasks_at_once` says how many there may have been. Where a task fails, the others
    are finished first.
    """
    if not items:
        return
    rows = (
        _here(function, items, prepare(shared))
        if workers is None
        else _there(function, items, prepare, shared, workers)
    )
    for row in rows:
        records.append(suite, row)
        print(show(row), flush=True)


def _here(function: Callable[[Prepared, Item], Iterator[Row]], items: list[Item], prepared: Prepared) -> Iterator[Row]:
    for item in items:
        try:
            yield from function(prepared, item)
        except Skipped as reason:
            print(f"skipped {reason}", flush=True)


def _there(
    function: Callable[[Prepared, Item], Iterator[Row]],
    items: list[Item],
    prepare: Callable[[Shared], Prepared],
    shared: Shared,
    workers: Workers,
) -> Iterator[Row]:
    failed: list[Exception] = []
    for finished in workers.map(partial(_rows, function), items, prepare=prepare, shared=shared):
        if isinstance(finished.error, Skipped):
            print(f"skipped {finished.error}", flush=True)
        elif finished.error is not None:
            failed.append(finished.error)
        else:
            yield from ({**row, "tasks_at_once": workers.at_once} for row in finished.value)
    if failed:
        raise failed[0]


def _rows(function: Callable[[Prepared, Item], Iterator[Row]], prepared: Prepared, item: Item) -> list[Row]:
    """In the worker."""
    return [{**row, "environment": records.environment()} for row in function(prepared, item)]
