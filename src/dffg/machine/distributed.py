"""The same function on many items, on more processors or machines than this one: Ray, and all we ask of it.

Every item is worked on by one task. Tasks whose worker dies are run again by Ray; a result arrives once. Workers
compute with as many threads as this process, since sums of floats depend on how they are shared among threads. Ray is
imported when it is asked for. It sends pickles between its own processes: use only clusters that you trust.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

from dffg.errors import DffgError, InputError, first_line

LOCAL = "local"
# How often a task is run again whose worker was killed; one that kills every worker must end, too.
_RETRIES = 5
# Tasks waiting behind every running one, so that no worker waits for us.
_AHEAD = 2
_PATIENCE = 10.0
_VERSIONED = ("dffg", "torch")

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[Item]):
    """An item with what came of it: a result, or the error that it ended with."""

    item: Item
    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """The result. Raises the error, as if it had happened here."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all tasks of a `map` have in common; a worker fetches and prepares it once."""

    key: str
    prepare: Callable[[Any], Any]
    reference: Any
    threads: int
    versions: tuple[str, ...]


@contextmanager
def ray_workers(address: str = LOCAL, *, count: int | None = None) -> Iterator[Workers]:
    """Workers for `synthesize_set` and `quantize`, as long as the block lasts.

    address: `local` starts Ray on this machine, for this process alone; `auto`, or HOST:PORT, joins a cluster that runs
    here. Where `ray.init` was called before, that stays in use. count: tasks at once, by default as many as there are
    processors for the threads of each. Dashboard, usage statistics and logs are off in what is started here. Raises
    InputError where Ray is missing, does not answer, or no machine has a processor for every thread of a task.
    """
    ray = _ray()
    threads, started = torch.get_num_threads(), not ray.is_initialized()
    if started:
        _start(ray, address, None if count is None else count * threads)
    try:
        _refuse_small_machines(ray, threads)
        yield Workers(ray, threads, count)
    finally:
        if started:
            ray.shutdown()


class Workers:
    """Processes that run tasks; made by `ray_workers`."""

    def __init__(self, ray: Any, threads: int, count: int | None) -> None:
        self._ray, self._threads, self._count = ray, threads, count

    def map(
        self,
        function: Callable[[Any, Item], Any],
        items: Iterable[Item],
        *,
        prepare: Callable[[Any], Any] = lambda shared: shared,
        shared: Any = None,
        seconds: float | None = None,
    ) -> Iterator[Finished[Item]]:
        """`function(prepare(shared), item)` of every item, as they are finished, in no order.

        seconds: then what is not finished is given up, once there is a result at all. Few items are on their way at
        once, so that results do not pile up.
        """
        ray, deadline = self._ray, None if seconds is None else time.monotonic() + seconds
        what = _Shared(
            key=uuid.uuid4().hex,
            prepare=prepare,
            reference=ray.put(shared),
            threads=self._threads,
            versions=_versions(),
        )
        task = ray.remote(_run).options(num_cpus=self._threads, max_retries=_RETRIES)
        running: dict[Any, Item] = {}
        waiting, some = iter(items), False
        try:
            while True:
                for item in islice(waiting, max(0, self._room() - len(running))):
                    running[task.remote(what, function, item)] = item
                if not running:
                    return
                left = None if deadline is None or not some else max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(running), timeout=left)
                if not ready:
                    return
                some = True
                yield _finished(ray, running.pop(ready[0]), ready[0])
        finally:
            if ray.is_initialized():
                for reference in running:
                    ray.cancel(reference, force=True)

    @property
    def at_once(self) -> int:
        """Tasks that can run at the same time. A cluster may have grown since the last look."""
        if self._count is not None:
            return self._count
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)) // self._threads)

    def _room(self) -> int:
        """Tasks that may be on their way."""
        return self.at_once if self._count is not None else _AHEAD * self.at_once


def _run(what: _Shared, function: Callable[[Any, Item], Any], item: Item) -> Any:
    """In the worker."""
    torch.set_num_threads(what.threads)
    return function(_prepared(what), item)


_last_prepared: tuple[str, Any] = ("", None)


def _prepared(what: _Shared) -> Any:
    global _last_prepared
    if _last_prepared[0] != what.key:
        if _versions() != what.versions:
            here, there = (" and ".join(map(" ".join, zip(_VERSIONED, v))) for v in (_versions(), what.versions))
            raise InputError(f"a worker has {here}, and not {there}; install the same on all machines.")
        _last_prepared = (what.key, what.prepare(_ray().get(what.reference)))
    return _last_prepared[1]


def _versions() -> tuple[str, ...]:
    return tuple(version(name) for name in _VERSIONED)


def _finished(ray: Any, item: Item, reference: Any) -> Finished[Item]:
    try:
        return Finished(item=item, value=ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return Finished(item=item, error=error.cause if isinstance(error.cause, Exception) else error)
    except ray.exceptions.RayError as error:
        reason = f"its workers died {_RETRIES + 1} times, the last time with {first_line(error)}"
        return Finished(item=item, error=DffgError(f"{reason}. Where memory ran out, give fewer --workers."))


def _ray() -> Any:
    # Ray asks on the terminal, and then sends statistics of its use, unless it is told before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("ray is not installed; install it with: pip install 'dffg[ray]'") from error


def _start(ray: Any, address: str, processors: int | None) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    host, _, port = address.rpartition(":")
    local: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False} if address == LOCAL else {}
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        # Deaths of workers are printed to standard output, where programs read our --json.
        ray._private.worker._worker_logs_enabled = False
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"no Ray cluster can be used at {address!r}: {first_line(error)}") from error


def _refuse_small_machines(ray: Any, threads: int) -> None:
    """Ray would wait for a larger machine for ever."""
    most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if most < threads:
        raise InputError(
            f"every task computes with {threads} threads, as this process does, and no machine of the cluster has more "
            f"than {most} processors; set OMP_NUM_THREADS={max(most, 1)}."
        )
