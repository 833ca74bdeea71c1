"""Cells here and elsewhere: the same rows, appended once, by one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells, lowbits_tables, records
from dffg.errors import InputError
from dffg.machine.distributed import Finished

SUITE = "squares"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)


class BackToFront:
    """Workers that finish the last item first, and report errors as Ray does."""

    at_once = 3

    def map(self, function: Any, items: list[int], *, prepare: Any, shared: Any) -> Iterator[Finished[int]]:
        prepared = prepare(shared)
        for item in reversed(items):
            try:
                value = function(prepared, item)
            except Exception as error:
                yield Finished(item=item, error=error)
            else:
                yield Finished(item=item, value=value)


def squares(factor: int, item: int) -> Iterator[cells.Row]:
    if item == 2:
        raise cells.Skipped("two: it is even")
    if item > 8:
        raise InputError(f"{item} is too large")
    yield {"item": item, "square": factor * item**2}


def measure(items: list[int], workers: Any = None, prepare: Callable[[int], int] = abs) -> list[tuple[int, int]]:
    cells.measure(SUITE, squares, items, prepare=prepare, shared=-1, workers=workers)
    return [(row["item"], row["square"]) for row in records.read(SUITE)]


def test_rows_are_appended_and_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure([1, 2, 3]) == [(1, 1), (3, 9)]
    assert capsys.readouterr().out.splitlines() == [
        "{'item': 1, 'square': 1}",
        "skipped two: it is even",
        "{'item': 3, 'square': 9}",
    ]
    assert not any("tasks_at_once" in row for row in records.read(SUITE))


def test_rows_from_elsewhere_say_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "environment", lambda: {"processor": "of the worker"})
    assert measure([1, 2, 3], BackToFront()) == [(3, 9), (1, 1)]
    assert "skipped two: it is even" in capsys.readouterr().out
    rows = records.read(SUITE)
    assert all(row["tasks_at_once"] == 3 and row["environment"] == {"processor": "of the worker"} for row in rows)


def test_what_is_done_before_a_failure_stays() -> None:
    with pytest.raises(InputError, match="9 is too large"):
        measure([1, 9, 3])
    assert [row["item"] for row in records.read(SUITE)] == [1]


def test_elsewhere_the_others_are_finished_first() -> None:
    with pytest.raises(InputError, match="9 is too large"):
        measure([1, 9, 3], BackToFront())
    assert [row["item"] for row in records.read(SUITE)] == [3, 1]


def test_nothing_is_prepared_for_nothing() -> None:
    def refuse(_: int) -> int:
        raise AssertionError

    assert measure([], prepare=refuse) == measure([], BackToFront(), prepare=refuse) == []


def test_seconds_beside_others_are_marked() -> None:
    alone = {"seconds": 3.2, "device": "cpu"}
    beside = {"seconds": 3.4, "device": "cpu", "tasks_at_once": 2}
    assert lowbits_tables.shown_seconds([alone, alone]) == "3"
    assert lowbits_tables.shown_seconds([alone, beside]) == "3, beside others"
    assert lowbits_tables.shown_seconds([{**beside, "device": "cuda:0 (Card)"}]) == "3, cuda:0 (Card), beside others"
