"""What one pass of synthesis costs beside the convolutions that it cannot do without, in one run, in turns.

floor      the network's convolutions and linear layers alone, forward and backward to their inputs
reference  the loss as `synthesis/statistics.py` writes it, on the network as it was captured, by autograd
fast       what synthesis runs
zeroq      an iteration of Adam on ZeroQ's loss, on the same folded network
mct        an iteration of Sony MCT, where its environment is there; on a CPU only

On CUDA all but the last two are recorded once and replayed, as synthesis is.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from benchmarks.peers import mct
from benchmarks.timing import medians, ratios
from benchmarks.variants import sampled_statistics
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured, capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import LINEAR, WEIGHTED, argument, calls
from dffg.machine.device import CUDA, HOST, channels_last, described, in_bfloat16
from dffg.machine.memory import reused_memory
from dffg.machine.replay import Replayed
from dffg.synthesis.chain import chain_generator, gradient_of
from dffg.synthesis.generators import chain_of
from dffg.synthesis.objective import Objective
from dffg.synthesis.starts import start_from_noise
from dffg.synthesis.statistics import batch_norm_inputs, batch_norm_statistics_loss

SUITE = "step"
FLOOR, REFERENCE, FAST, ZEROQ, MCT = "floor", "reference", "fast", "zeroq", "mct"
VARIANTS = ("fast, bfloat16", "fast, compiled", "fast, sampled")
PARTS = (FLOOR, REFERENCE, FAST, ZEROQ, MCT)
_MCT_ITERATIONS = 10
_BYTES = 4
_PEAK_SIZE = 2048
_LARGE_MAP = 28**2
# On CUDA the fourth call of a part is recorded.
_WARM_UP = 4

Part = Callable[[], float]


def run_suite(
    networks: list[str],
    batch: int,
    size: int | None,
    threads: int,
    rounds: int,
    parts: list[str],
    device: torch.device = HOST,
) -> None:
    """Measure every network at one batch size, resolution and number of threads, or on a device."""
    torch.set_num_threads(threads)
    for benchmark in load_benchmarks(networks):
        spec = benchmark.spec if size is None else replace(benchmark.spec, shape=(benchmark.spec.shape[0], size, size))
        captured = capture(benchmark.model, spec=spec).on(device)
        generator = chain_generator(seed=0, chain=0)
        images = channels_last(start_from_noise(SynthesisConfig(batch_size=batch), spec, generator, device))
        layers = Layers(captured, images)
        records.append(
            SUITE,
            {
                "network": benchmark.name,
                "batch": batch,
                "size": spec.shape[-1],
                "threads": threads,
                "device": described(device),
                **describe(measure(_parts(benchmark, captured, images, layers, parts), rounds)),
                "flops": layers.flops(),
                "bytes": layers.bytes,
                "peak_flops": _peak_flops(device),
                "peak_bytes": _peak_bytes(device),
            },
        )
        shown = records.read(SUITE)[-1]
        print(benchmark.name, {name: round(value, 2) for name, value in shown["times_floor"].items()}, flush=True)


@reused_memory()
def measure(parts: dict[str, Part], rounds: int) -> list[dict[str, float]]:
    """Seconds of every part, round by round: of the second of two calls, since in synthesis passes follow each other.

    What runs before a part decides what caches and freed memory hold: after the reference, ours took 1.3 times as long.
    A part that is a process of its own runs after all rounds. Each runs a few times before, until it has the memory it
    needs.
    """
    here = [name for name in parts if name != MCT]
    for name in _WARM_UP * here:
        parts[name]()
    taken = [{name: _again(parts[name]) for name in here} for _ in range(rounds)]
    return [{**one, MCT: parts[MCT]()} for one in taken] if MCT in parts else taken


def _again(part: Part) -> float:
    part()
    return part()


def describe(taken: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds; ratios are medians of the ratios within a round."""
    return {"rounds": taken, "seconds": medians(taken), "times_floor": ratios(taken, FLOOR)}


def _parts(
    benchmark: Benchmark, captured: Captured, images: Tensor, layers: Layers, names: list[str]
) -> dict[str, Part]:
    device, timed = captured.device, partial(_timed, device=captured.device)
    makers: dict[str, Callable[[], Part]] = {
        FLOOR: lambda: timed(layers.run),
        REFERENCE: lambda: timed(_reference(captured, images)),
        FAST: lambda: timed(_fast(captured, images)),
        VARIANTS[0]: lambda: timed(_in_bfloat16(_fast(captured, images), device)),
        VARIANTS[1]: lambda: timed(_compiled(captured, images)),
        VARIANTS[2]: lambda: timed(_sampled(captured, images)),
        ZEROQ: lambda: timed(_iterations(captured, len(images))),
        MCT: lambda: _peer(benchmark, len(images), device),
    }
    chosen: dict[str, Part] = {}
    for name in names:
        try:
            chosen[name] = makers[name]()
        except mct.PeerUnavailable as error:
            print(f"skipped {name} on {benchmark.name}: {error}", flush=True)
    return chosen


def finish_on(device: torch.device) -> None:
    """Wait until a device has computed all that it was asked for; a CPU has when a call returns."""
    if device.type == CUDA:
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], Any], device: torch.device) -> Part:
    def seconds() -> float:
        finish_on(device)
        started = time.perf_counter()
        work()
        finish_on(device)
        return time.perf_counter() - started

    return seconds


class Layers:
    """The convolutions and linear layers of a folded network with the inputs they get."""

    def __init__(self, captured: Captured, images: Tensor) -> None:
        recorder = _Recorder(fold_batch_norms(captured))
        with torch.no_grad():
            recorder.run(images)
        self._calls, self._images = recorder.recorded, images
        self._replayed = Replayed(self._run)

    def run(self) -> None:
        """All of them, forward, and backward to the input."""
        self._replayed(self._images)

    @torch.no_grad()
    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        """What it returns is of no interest; their inputs are those of these images already."""
        for node, arguments, result in self._calls:
            node.target(*arguments)  # type: ignore[operator]
            _backward_to_input(node, arguments, result)
        return (images,)

    def flops(self) -> int:
        """Multiplications and additions of a run."""
        with FlopCounterMode(display=False) as counter:
            self._run(self._images)
        return int(counter.get_total_flops())

    @property
    def bytes(self) -> int:
        """What a run must at least read and write: input, weight and result, each once in either direction."""
        return sum(
            2 * _BYTES * (arguments[0].numel() + arguments[1].numel() + result.numel())
            for _, arguments, result in self._calls
        )


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.recorded: list[tuple[fx.Node, tuple[Any, ...], Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if calls(n, *WEIGHTED):
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.recorded.append((n, tuple(arguments), result))
        return result


def _backward_to_input(node: fx.Node, arguments: tuple[Any, ...], gradient: Tensor) -> Tensor:
    weight = arguments[1]
    if node.target is LINEAR:
        return torch.mm(gradient.flatten(0, -2), weight)
    ones = [1] * (weight.dim() - 2)
    stride, padding = argument(node, 3, ones), argument(node, 4, [0] * len(ones))
    dilation, groups = argument(node, 5, ones), argument(node, 6, 1)
    (to_input, _, _) = torch.ops.aten.convolution_backward(
        gradient, arguments[0], weight, None, stride, padding, dilation, False, [0], groups, [True, False, False]
    )
    assert isinstance(to_input, Tensor)
    return to_input


def _reference(captured: Captured, images: Tensor) -> Callable[[], Any]:
    network, contiguous = batch_norm_inputs(captured), images.contiguous()
    gradient_at = gradient_of(lambda seen: batch_norm_statistics_loss(captured.batch_norms, network(seen)))
    return lambda: gradient_at(contiguous)


def _fast(captured: Captured, images: Tensor) -> Callable[[], Any]:
    gradient_at = gradient_of(Objective(captured, slack=SynthesisConfig().slack))
    return lambda: gradient_at(images)


def _in_bfloat16(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    def run() -> None:
        with in_bfloat16(device):
            work()

    return run


def _compiled(captured: Captured, images: Tensor) -> Callable[[], Any]:
    gradient_at = gradient_of(torch.compile(Objective(captured, slack=SynthesisConfig().slack)))
    return lambda: gradient_at(images)


def _sampled(captured: Captured, images: Tensor) -> Callable[[], Any]:
    """Statistics of large maps from every second row and column."""
    gradient_at = gradient_of(sampled_statistics(_LARGE_MAP)(captured, SynthesisConfig()))
    return lambda: gradient_at(images)


def _iterations(captured: Captured, batch: int) -> Callable[[], Any]:
    """Adam on ZeroQ's loss, one iteration a call."""
    config = SynthesisConfig(generator="zeroq", batch_size=batch, count=batch)
    visits = itertools.chain.from_iterable(chain_of(captured, config)(index) for index in itertools.count())
    return lambda: next(visits)


def _peer(benchmark: Benchmark, batch: int, device: torch.device) -> Part:
    if device != HOST:
        raise mct.PeerUnavailable("it is timed on the CPU")
    mct.make_environment()

    def seconds() -> float:
        with tempfile.TemporaryDirectory() as folder:
            made = mct.generate(
                benchmark.name,
                batch,
                0,
                _MCT_ITERATIONS,
                Path(folder) / "images.npz",
                batch=batch,
                threads=torch.get_num_threads(),
            )
        return float(made["seconds_per_iteration"])

    return seconds


def _peak_flops(device: torch.device) -> float:
    """What a large matrix product reaches, per second."""
    a, b = (torch.rand(_PEAK_SIZE, _PEAK_SIZE, device=device) for _ in range(2))
    return 2 * _PEAK_SIZE**3 / min(_repeated(lambda: a @ b, device))


def _peak_bytes(device: torch.device) -> float:
    """What copying a tensor that no cache holds reaches, read and written, per second."""
    source = torch.rand(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * _BYTES * source.numel() / min(_repeated(lambda: target.copy_(source), device))


def _repeated(work: Callable[[], Any], device: torch.device) -> Iterator[float]:
    part = _timed(work, device)
    return (part() for _ in range(5))
