"""What is asked of Ray and made of its answers, with a stand-in that runs tasks here, the last one first."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dffg.errors import DffgError, InputError
from dffg.machine import distributed
from dffg.machine.distributed import Workers


class TaskError(Exception):
    """As RayTaskError, with what was raised in the worker."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("wrapped")
        self.cause = cause


class DeadError(Exception):
    """As RayError: a worker is gone."""


class Reference:
    """To a value, or to what a task will give."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class StandIn:
    """Of Ray: what `Workers` calls of it, noted."""

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=DeadError)

    def __init__(self, processors: int = 8) -> None:
        self.processors, self.patient = processors, True
        self.options_seen: list[dict[str, Any]] = []
        self.most_waiting = 0
        self.cancelled: list[Any] = []
        self.timeouts: list[float | None] = []

    def remote(self, function: Any) -> Any:
        task = SimpleNamespace(remote=lambda *arguments: Reference(function, *arguments))

        def options(**given: Any) -> Any:
            self.options_seen.append(given)
            return task

        return SimpleNamespace(options=options)

    def put(self, value: Any) -> Reference:
        return Reference(lambda: value)

    def get(self, reference: Reference) -> Any:
        try:
            return reference.function(*reference.arguments)
        except DeadError:
            raise
        except BaseException as error:
            raise TaskError(error) from error

    def wait(self, references: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        self.most_waiting = max(self.most_waiting, len(references))
        self.timeouts.append(timeout)
        return (references[-1:], references[:-1]) if self.patient or timeout is None else ([], references)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.processors}

    def is_initialized(self) -> bool:
        return True

    def cancel(self, reference: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made, before = StandIn(), torch.get_num_threads()
    monkeypatch.setattr(distributed, "_ray", lambda: made)
    yield made
    torch.set_num_threads(before)


def scaled(factor: int, item: int) -> int:
    return factor * item


def test_every_item_has_its_own_result(ray: StandIn) -> None:
    found = list(Workers(ray, 1, 3).map(scaled, range(6), shared=10))
    assert {one.item: one.result() for one in found} == {item: 10 * item for item in range(6)}
    assert len(found) == 6
    assert found[0].item != 0


def test_a_task_asks_for_its_threads_and_is_tried_again(ray: StandIn) -> None:
    found = list(Workers(ray, 2, 1).map(lambda shared, item: torch.get_num_threads(), [0]))
    assert found[0].result() == 2
    assert ray.options_seen == [{"num_cpus": 2, "max_retries": 5}]


def test_a_worker_prepares_once_for_all_items_and_anew_for_other_work(ray: StandIn) -> None:
    prepared: list[int] = []

    def prepare(shared: int) -> int:
        prepared.append(shared)
        return -shared

    for shared in (7, 7, 8):
        found = Workers(ray, 1, 2).map(scaled, [1, 2], prepare=prepare, shared=shared)
        assert sorted(one.result() for one in found) == [-2 * shared, -shared]
    assert prepared == [7, 7, 8]


@pytest.mark.parametrize(("threads", "count", "at_once", "waiting"), [(2, None, 4, 8), (3, None, 2, 4), (1, 3, 3, 3)])
def test_few_items_are_on_their_way(ray: StandIn, threads: int, count: int | None, at_once: int, waiting: int) -> None:
    workers = Workers(ray, threads, count)
    assert len(list(workers.map(scaled, range(20), shared=1))) == 20
    assert (workers.at_once, ray.most_waiting) == (at_once, waiting)


def test_a_cluster_smaller_than_a_task_has_room_for_one(ray: StandIn) -> None:
    ray.processors = 1
    assert Workers(ray, 4, None).at_once == 1


def test_time_counts_once_there_is_a_result(ray: StandIn) -> None:
    ray.patient = False
    assert [one.item for one in Workers(ray, 1, 2).map(scaled, range(4), shared=1, seconds=100.0)] == [1]
    first, second = ray.timeouts
    assert first is None
    assert second is not None
    assert 0 < second <= 100
    assert len(ray.cancelled) == 2


def test_time_that_is_over_is_not_less_than_none(ray: StandIn) -> None:
    ray.patient = False
    list(Workers(ray, 1, 2).map(scaled, range(4), shared=1, seconds=-5.0))
    assert ray.timeouts == [None, 0.0]


def test_what_is_given_up_is_cancelled(ray: StandIn) -> None:
    found = Workers(ray, 1, 3).map(scaled, range(9), shared=1)
    next(found)
    found.close()
    assert len(ray.cancelled) == 2


def fail(error: BaseException, _: int) -> None:
    raise error


@pytest.mark.parametrize("error", [InputError("no such file"), ValueError("odd")])
def test_an_error_is_that_of_the_worker(ray: StandIn, error: Exception) -> None:
    (found,) = Workers(ray, 1, 1).map(fail, [0], shared=error)
    assert found.error is error
    with pytest.raises(type(error)) as raised:
        found.result()
    assert raised.value is error


def test_what_is_no_exception_arrives_wrapped(ray: StandIn) -> None:
    (found,) = Workers(ray, 1, 1).map(fail, [0], shared=SystemExit(1))
    assert isinstance(found.error, TaskError)


def test_workers_that_keep_dying_are_said(ray: StandIn) -> None:
    (found,) = Workers(ray, 1, 1).map(fail, [0], shared=DeadError("killed\nand more"))
    with pytest.raises(DffgError, match=r"its workers died 6 times, the last time with killed\. Where memory ran out"):
        found.result()
