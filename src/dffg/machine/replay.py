"""Repeat one piece of work: on CUDA recorded once and replayed, elsewhere called.

A step of learning, or of a chain, is some hundred small operations. On an accelerator each takes less time than Python
takes to ask for it; a recording (a CUDA graph) asks once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dffg.machine.device import CUDA

# Calls that let libraries choose their algorithms and optimizers make their state, before one is recorded.
_WARM_UP = 3


class Replayed:
    """`work(*inputs)`, which takes and returns tensors and does the same in every call, but for their values.

    On CUDA the first calls are calls, the next is recorded, and from then on the recording is replayed. What `work`
    reads besides its inputs, and what it writes, must stay the same tensors. Work that cannot be recorded, because it
    asks for a value, is called every time, and so are inputs of another shape than those recorded.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]]) -> None:
        self._work = work
        self._calls = 0
        self._recording: _Recording | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `work` returns."""
        if inputs[0].device.type != CUDA:
            return self._work(*inputs)
        self._calls += 1
        if self._calls <= _WARM_UP:
            return _called_aside(self._work, inputs)
        if self._calls == _WARM_UP + 1:
            self._recording = _recorded(self._work, inputs)
        if self._recording is None or not self._recording.fits(inputs):
            return self._work(*inputs)
        return self._recording.replay(inputs)


class _Recording:
    """A CUDA graph with the tensors that it reads and writes."""

    def __init__(self, work: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(value.detach().clone() for value in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device), torch.cuda.graph(self._graph):
            self._results = work(*self._inputs)

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        return [value.shape for value in inputs] == [value.shape for value in self._inputs]

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, value in zip(self._inputs, inputs):
            own.copy_(value)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)


def _recorded(work: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> _Recording | None:
    try:
        return _Recording(work, inputs)
    except RuntimeError:
        return None


def _called_aside(work: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A call on a stream of its own, as recording asks of what comes before it."""
    device = inputs[0].device
    aside, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        results = work(*inputs)
    here.wait_stream(aside)
    return results
