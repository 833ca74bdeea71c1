"""Every generator of calibration images through the same quantizers: only the data differs.

A cell is one generator with its settings on one network with one seed. It is scored on evaluation images in ONNX
Runtime by every quantizer. Cells that are in the results already are not measured again, so a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import cells, records
from benchmarks.exchanged import BATCH, Exchanged, quantizer
from benchmarks.networks import OURS, REAL, Benchmark, load_benchmarks
from benchmarks.peers import mct
from dffg.config import JOINT, SynthesisConfig
from dffg.evaluation.data import Data
from dffg.evaluation.metrics import compare
from dffg.graph.captured import Captured
from dffg.machine.distributed import Workers
from dffg.spec import Array, ImageSpec
from dffg.synthesis.snapshots import passes_per_chain, snapshots_per_chain
from dffg.synthesis.synthesize import synthesize_set

SUITE = "arena"
COUNT = 64
KEPT_IN_MEMORY = 5000
PEER = "mct"
PEER_ITERATIONS = 500
BITS = ("W8A8", "W8A6", "W6A6", "W4A8", "W4A4")
# Where the data matters most; all that is asked of settings that are not a generator's own.
HARD_BITS = ("W6A6", "W4A4")
# At 4 bits with plain ranges large networks lose most of their accuracy with any data.
LARGE_BITS = ("W8A8", "W6A6")
RANGES = ("minmax", "mse")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A generator with options; those left out are its own defaults."""

    generator: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name, with the options that differ from the generator's defaults."""
        return " ".join([self.generator, *(f"{name} {value}" for name, value in self.options.items())])

    @property
    def count(self) -> int:
        """Images that it makes."""
        return int(self.options.get("count", COUNT))


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Networks, contestants and seeds; at most `examples` evaluation images per network.

    long: also what takes over half an hour for a seed of a large network.
    """

    networks: tuple[str, ...]
    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    examples: int
    long: bool = False


def _of(generator: str, **options: Any) -> Contestant:
    return Contestant(generator=generator, options=options)


def _budgets(generator: str, *steps: int, **options: Any) -> tuple[Contestant, ...]:
    return tuple(_of(generator, steps=budget, **options) for budget in steps)


YARDSTICKS = tuple(_of(name) for name in (REAL, "noise", "uniform", "ones", "sigma-noise"))
# Ours makes 4 passes for every image at its defaults, and about 2, 8 and 16 with these options; keeping only what a
# chain ends with is 16 too, and of one step it keeps the noise that it starts from.
FAST = (
    _of(OURS),
    _of(OURS, batch_size=8, burn_in=8),
    _of(OURS, steps=32, keep_every=2),
    _of(OURS, steps=64, keep_every=4),
    _of(OURS, burn_in=15),
    _of(OURS, steps=1),
    _of(OURS, variability="none"),
    *(_of(name) for name in ("i-fgsm", "mi-fgsm", "ni-fgsm", "vmi-fgsm", "di-fgsm")),
    _of("adam-snapshots"),
    _of("adam-snapshots", steps=64, keep_every=4),
    _of("adam-snapshots", burn_in=15),
)
# The rivals at 4, 16 and 64 passes an image, with batches that divide the number of images, so that none are wasted.
# DGH's optimizer hardly moves in fewer than 16.
SHORT = (
    *_budgets("zeroq", 4, 16, 64),
    *_budgets("dsg", 4, 16, 64, batch_size=32),
    *_budgets("dgh", 16, 64),
    *_budgets("deepinversion", 4, 16, 64),
    *_budgets("genie", 4, 16, 64, batch_size=64),
)
LONG = (
    _of("zeroq"),
    _of("dsg", batch_size=32),
    _of("dgh"),
    *_budgets("deepinversion", 500),
    *_budgets("genie", 500, batch_size=64),
    _of("deepinversion"),
    _of(PEER),
)
# More images and fewer, on small networks.
COUNTED = tuple(_of(name, count=count) for name in (REAL, "noise", OURS) for count in (16, 32, 128, 256))
LARGEST_SMALL = 64
SUITES = {
    "smoke": Suite(
        networks=("kws_dscnn", "cifar10_resnet20"),
        contestants=(
            *YARDSTICKS[:2],
            _of(OURS),
            _of("adam-snapshots"),
            *_budgets("zeroq", 16),
        ),
        seeds=(0,),
        examples=500,
    ),
    "imagenet": Suite(
        networks=("timm:resnet18", "timm:resnet50", "timm:inception_v3", "timm:mobilenetv2_100"),
        contestants=(*YARDSTICKS, *FAST, *SHORT, *LONG),
        seeds=(0, 1, 2),
        examples=50000,
    ),
    "full": Suite(
        networks=("kws_dscnn", "cifar10_resnet20", "cifar10_resnet56", "efficientnet_lite0", "mobilenet_v2"),
        contestants=(*YARDSTICKS, *FAST, *SHORT, *LONG, *COUNTED),
        seeds=(0, 1, 2),
        examples=5000,
    ),
}


class Batches:
    """Evaluation inputs that can be read again and again: kept in memory where they fit, else decoded every time."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._kept = list(data.batches(BATCH)) if len(data) <= KEPT_IN_MEMORY else None

    def __iter__(self) -> Iterator[Array]:
        return iter(self._kept) if self._kept is not None else self._data.batches(BATCH)


def narrowed(suite: Suite, networks: list[str], labels: list[str], seeds: list[int], long: bool = False) -> Suite:
    """A part of a suite; an empty list narrows nothing."""
    return replace(
        suite,
        networks=tuple(networks) or suite.networks,
        contestants=tuple(one for one in suite.contestants if not labels or one.label in labels),
        seeds=tuple(seeds) or suite.seeds,
        long=long,
    )


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images, and what they cost: seconds, and forward and backward passes of every image."""

    inputs: Array
    seconds: float
    passes_per_image: float
    peer: dict[str, Any] | None = None


def run_suite(
    suite: Suite,
    load: Callable[[tuple[str, ...]], Iterator[Benchmark]] = load_benchmarks,
    workers: Workers | None = None,
) -> None:
    """Measure every cell that is not in the results yet, and append it."""
    done = {key(record) for record in records.read(SUITE)}
    for benchmark in load(suite.networks):
        benchmark = replace(benchmark, evaluation=benchmark.evaluation.first(suite.examples))
        contestants = [one for one in suite.contestants if _is_bearable(one, benchmark, suite)]
        items = [(contestant, seed) for seed in suite.seeds for contestant in contestants]
        wanted = [item for item in items if key(_cell(benchmark, *item)) not in done]
        cells.measure(SUITE, _measure, wanted, prepare=_Scorer, shared=benchmark, show=_summary, workers=workers)


def _is_bearable(contestant: Contestant, benchmark: Benchmark, suite: Suite) -> bool:
    if suite.long or contestant not in LONG or not is_large(benchmark.spec):
        return True
    print(f"skipped {contestant.label} on {benchmark.name}: it takes over half an hour; --long measures it")
    return False


class _Scorer:
    """A network with its evaluation inputs and the float answer to them."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.exchanged = Exchanged(benchmark)
        self.inputs = Batches(benchmark.evaluation)
        self.reference = self.exchanged.float_answer(self.inputs)


def _cell(benchmark: Benchmark, contestant: Contestant, seed: int) -> dict[str, Any]:
    return {
        "network": benchmark.name,
        "generator": contestant.generator,
        "label": contestant.label,
        "seed": seed,
        "count": len(benchmark.evaluation),
        "config": config_of(contestant, seed),
    }


def _measure(scorer: _Scorer, item: tuple[Contestant, int]) -> Iterator[dict[str, Any]]:
    contestant, _ = item
    made = make(scorer.benchmark, scorer.exchanged.captured, *item)
    if isinstance(made, str):
        raise cells.Skipped(f"{contestant.label} on {scorer.benchmark.name}: {made}")
    yield {
        **_cell(scorer.benchmark, *item),
        "images": contestant.count,
        "seconds": made.seconds,
        "passes_per_image": made.passes_per_image,
        "peer": made.peer,
        "scores": _scores(scorer, contestant, made.inputs),
    }


def make(benchmark: Benchmark, captured: Captured, contestant: Contestant, seed: int) -> Made | str:
    """The images of a contestant, or the reason why there are none."""
    if contestant in COUNTED and is_large(benchmark.spec):
        return "numbers of images are compared on small networks"
    if contestant.generator == REAL:
        return _real(benchmark, contestant.count, seed)
    if contestant.generator == PEER:
        return _make_by_peer(benchmark, seed)
    config = _synthesis(contestant, seed)
    started = time.perf_counter()
    made = synthesize_set(captured, config)
    return Made(
        inputs=made.inputs,
        seconds=time.perf_counter() - started,
        passes_per_image=passes_per_image(config),
    )


def _real(benchmark: Benchmark, count: int, seed: int) -> Made | str:
    there = len(benchmark.calibration)
    if count > there:
        return f"there are {there} real images to calibrate with"
    return Made(inputs=benchmark.real_images(count, seed), seconds=0.0, passes_per_image=0.0)


def _synthesis(contestant: Contestant, seed: int) -> SynthesisConfig:
    return SynthesisConfig(generator=contestant.generator, seed=seed, **{"count": COUNT, **contestant.options})


def config_of(contestant: Contestant, seed: int) -> dict[str, Any]:
    """The whole configuration of a generator of ours; nothing for real images and for peers."""
    return {} if contestant.generator in (REAL, PEER) else asdict(_synthesis(contestant, seed))


def bits_for(contestant: Contestant, spec: ImageSpec) -> tuple[str, ...]:
    """The widths that a setting is scored at."""
    if not contestant.options:
        return BITS
    return LARGE_BITS if is_large(spec) else HARD_BITS


def is_large(spec: ImageSpec) -> bool:
    """Whether the generators' own numbers of iterations take over half an hour, and scoring is the smaller part."""
    return max(spec.shape) > LARGEST_SMALL


def passes_per_image(config: SynthesisConfig) -> float:
    """Forward and backward passes of one image that were made for every image that was kept.

    A chain ends when there are images enough.
    """
    if config.generator in JOINT:
        return float(passes_per_chain(config))
    batches = math.ceil(config.count / config.batch_size)
    chains, further = divmod(batches - 1, snapshots_per_chain(config))
    steps = chains * config.steps + config.burn_in + further * config.keep_every + 1
    return steps * passes_per_chain(config) / config.steps * config.batch_size / config.count


def _make_by_peer(benchmark: Benchmark, seed: int) -> Made | str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = mct.generate(benchmark.name, COUNT, seed, PEER_ITERATIONS, Path(folder) / "images.npz")
    except mct.PeerUnavailable as error:
        return str(error)
    inputs = made.pop("inputs")
    return Made(inputs=inputs, seconds=made["seconds"], passes_per_image=PEER_ITERATIONS, peer=made)


def _scores(scorer: _Scorer, contestant: Contestant, images: Array) -> dict[str, dict[str, float]]:
    exchanged, data = scorer.exchanged, scorer.benchmark.evaluation
    histograms = exchanged.observe(images)
    assert data.labels is not None
    scores = {}
    for bits in bits_for(contestant, data.spec):
        # sigma-noise is a pair: its ranges belong to it
        for ranges in ("sigma",) if contestant.generator == "sigma-noise" else RANGES:
            answer = exchanged.answer(histograms, quantizer(bits, ranges), scorer.inputs)
            accuracy = compare(scorer.reference, answer, data.labels)
            scores[f"{bits} {ranges}"] = {
                name: getattr(accuracy, name)
                for name in ("float_top1", "drop_points", "standard_error", "kl_to_float", "kl_standard_error")
            }
    return scores


def key(record: dict[str, Any]) -> str:
    """What makes a cell: where a default has changed since, it is another one."""
    return repr([record[name] for name in ("network", "label", "seed", "count", "config")])


def _summary(cell: dict[str, Any]) -> str:
    drops = ", ".join(f"{name} {score['drop_points']:.1f}" for name, score in cell["scores"].items() if "mse" in name)
    return (
        f"{cell['network']:20} {cell['label']:28} seed {cell['seed']}  {cell['seconds']:7.1f} s  "
        f"{cell['passes_per_image']:6.1f} passes  {drops}"
    )
