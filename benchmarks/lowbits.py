"""Fewer than 8 bits, in ONNX Runtime: every method of choosing integers, on images from several sources.

The first and the last layer have 8 bits (the convention of BRECQ). Every method starts from the same ranges,
reconstruction from SQuant's integers with corrected biases, and fine-tuning from the reconstruction. Cells that are in
the results already are not measured again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import records
from benchmarks.cells import measure as measure_cells
from benchmarks.int8 import LAYERWISE_IMAGES
from benchmarks.networks import OURS, REAL, Benchmark, load_benchmarks, outputs_of
from dffg.config import FinetuneConfig, QuantizationConfig, ReconstructionConfig, SynthesisConfig
from dffg.evaluation.metrics import compare
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import count_kernels, run
from dffg.export.verification import match_simulation
from dffg.graph.captured import Captured, capture
from dffg.graph.nodes import moved
from dffg.machine.device import HOST, described
from dffg.machine.distributed import Workers
from dffg.quant.decide import Decided, decide
from dffg.quant.finetune import finetune
from dffg.quant.quantized import Quantized
from dffg.quant.reconstruct import reconstruct
from dffg.spec import Array
from dffg.synthesis.synthesize import synthesize_set

SUITE = "lowbits"
OUTER_BITS = 8
RANGE_IMAGES = 64
NOISE = "noise"
SOURCES = (OURS, REAL, NOISE)
RANGES, SQUANT, ANALYTIC = "ranges", "squant", "squant, bias"
RECONSTRUCTION, FINETUNING = "reconstruction", "fine-tuning"
# Methods that learn nothing from images use them for ranges only.
FIXED: dict[str, dict[str, Any]] = {
    RANGES: {"weight_rounding": "nearest", "bias_correction": "none"},
    SQUANT: {"weight_rounding": "squant", "bias_correction": "none"},
    ANALYTIC: {"weight_rounding": "squant", "bias_correction": "analytic"},
}
METHODS = (*FIXED, RECONSTRUCTION, FINETUNING)
BITS = ("W6A6", "W4A8", "W4A4", "W3A3")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Images to learn from, steps per block and steps of the whole network."""

    images: int
    steps: int
    tuning_steps: int


BUDGETS = {
    "cifar10_resnet20": Budget(images=1024, steps=300, tuning_steps=200),
    "cifar10_resnet56": Budget(images=1024, steps=300, tuning_steps=200),
    "efficientnet_lite0": Budget(images=1024, steps=500, tuning_steps=0),
    "mobilenet_v2": Budget(images=1024, steps=500, tuning_steps=0),
}


def run_suite(
    networks: list[str],
    seeds: list[int],
    sources: list[str],
    bits: list[str],
    methods: list[str],
    device: torch.device = HOST,
    workers: Workers | None = None,
) -> None:
    """Measure every cell that is not in the results yet, and append it. device: what makes images and learns."""
    done = {key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        groups = [
            [cell for cell in cells(benchmark.name, source, seed, [width], methods) if key(cell) not in done]
            for seed in seeds
            for source in sources
            for width in bits
        ]
        wanted = [group for group in groups if group]
        measure_cells(
            SUITE, _measured, wanted, prepare=Prepared, shared=(benchmark, device), show=_summary, workers=workers
        )


class Prepared:
    """A network with its float answer, where it learns, and the images that were used last."""

    def __init__(self, shared: tuple[Benchmark, torch.device]) -> None:
        self.benchmark, self.device = shared
        self.captured = capture(self.benchmark.model, spec=self.benchmark.spec)
        self.reference = outputs_of(self.benchmark.model, self.benchmark.evaluation)
        self._sets: tuple[tuple[str, int], Sets] | None = None

    def sets(self, source: str, seed: int) -> Sets:
        """Images of a source; the same as before where they are asked for again at once."""
        if self._sets is None or self._sets[0] != (source, seed):
            self._sets = (source, seed), Sets(self.benchmark, self.captured.on(self.device), source, seed)
        return self._sets[1]

    def measure(self, quantized: Quantized) -> dict[str, Any]:
        """Write the file and run it: accuracy beside the reference, size, kernels, agreement with the simulation."""
        evaluation = self.benchmark.evaluation
        assert evaluation.labels is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_quantized(quantized, self.captured.spec, path)
            answer = np.concatenate(list(run(path, evaluation.batches())))
            first = torch.from_numpy(next(evaluation.batches(LAYERWISE_IMAGES)))
            match, kernels = match_simulation(quantized, path, first), count_kernels(path)
            size = path.stat().st_size
        return {
            "device": described(self.device),
            **asdict(compare(self.reference, answer, evaluation.labels)),
            "size_bytes": size,
            "integer_kernels": kernels.integer,
            "float_kernels": kernels.float,
            "layerwise_equal_share": match.equal_share,
            "layerwise_max_steps": match.max_abs_difference_in_steps,
            "verified": match.holds,
        }


def _measured(prepared: Prepared, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cells of one source, seed and width."""
    sets = prepared.sets(wanted[0]["source"], wanted[0]["seed"])
    for cell, decided, seconds in _decided(prepared, sets, wanted):
        yield {**cell, "seconds": seconds, **prepared.measure(decided.insert())}


def cells(
    network: str, source: str, seed: int, bits: list[str], methods: list[str], budget: Budget | None = None
) -> list[dict[str, Any]]:
    """Every combination, with the whole configuration of what makes it; budget: by default the network's own."""
    budget = budget or BUDGETS[network]
    return [
        {
            "network": network,
            "source": source,
            "seed": seed,
            "bits": width,
            "method": method,
            "config": {
                "synthesis": asdict(synthesis(budget, method, seed)) if source == OURS else {},
                "quantization": asdict(quantization(width, method)),
                "reconstruction": asdict(reconstruction(budget, seed)) if method not in FIXED else {},
                "finetuning": asdict(finetuning(budget, seed)) if method == FINETUNING else {},
                "images": RANGE_IMAGES if method in FIXED else budget.images,
            },
        }
        for width in bits
        for method in methods
        if method != FINETUNING or budget.tuning_steps
    ]


def key(record: dict[str, Any]) -> str:
    """What makes a cell: where a default has changed since, it is another one."""
    return repr([record[name] for name in ("network", "source", "seed", "bits", "method", "config")])


def quantization(bits: str, method: str) -> QuantizationConfig:
    """Widths, and how integers are chosen before anything is learned."""
    return QuantizationConfig(bits=bits, first_last_bits=OUTER_BITS, **FIXED.get(method, {}))


def synthesis(budget: Budget, method: str, seed: int) -> SynthesisConfig:
    """Ours for ranges, or for learning."""
    config = SynthesisConfig(count=RANGE_IMAGES, seed=seed)
    return config if method in FIXED else config.for_learning(budget.images)


def reconstruction(budget: Budget, seed: int) -> ReconstructionConfig:
    """Learning of the rounding, block by block; in bfloat16 everywhere, so that processors do not differ."""
    return ReconstructionConfig(iterations=budget.steps, bfloat16=True, seed=seed)


def finetuning(budget: Budget, seed: int) -> FinetuneConfig:
    """Training of the whole network."""
    return FinetuneConfig(iterations=budget.tuning_steps, seed=seed)


class Sets:
    """Images of a source for a method, made when they are first asked for."""

    def __init__(self, benchmark: Benchmark, captured: Captured, source: str, seed: int) -> None:
        self._benchmark, self._captured = benchmark, captured
        self._source, self._seed = source, seed
        self._made: dict[bool, Tensor] = {}

    def of(self, method: str) -> Tensor:
        """Network inputs, (count, *shape)."""
        learns = method not in FIXED
        if learns not in self._made:
            self._made[learns] = torch.from_numpy(self._make(method))
        return self._made[learns]

    def _make(self, method: str) -> Array:
        config = synthesis(BUDGETS[self._benchmark.name], method, self._seed)
        if self._source == REAL:
            return self._benchmark.real_images(config.count, self._seed)
        if self._source == NOISE:
            return self._benchmark.noise(config.count, self._seed)
        return synthesize_set(self._captured, config).inputs


def _decided(
    prepared: Prepared, sets: Sets, wanted: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Decided, float]]:
    """Each cell with what its method decides and the seconds that took; fine-tuning's include the reconstruction."""
    reconstructed: tuple[Decided, float] | None = None
    for cell in wanted:
        bits, method, seed, budget = cell["bits"], cell["method"], cell["seed"], BUDGETS[cell["network"]]
        images = sets.of(method)
        if method in FIXED:
            yield cell, *_timed(_ranged, prepared.captured, images, bits, method)
            continue
        reconstructed = reconstructed or _timed(learn, prepared, images, bits, budget, seed)
        decided, seconds = reconstructed
        if method == FINETUNING:
            decided, more = _timed(_finetuned, decided, images, budget, seed, prepared.device)
            seconds += more
        yield cell, decided, seconds


def _timed(work: Callable[..., Decided], *arguments: Any) -> tuple[Decided, float]:
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started


def _ranged(captured: Captured, images: Tensor, bits: str, method: str) -> Decided:
    return decide(captured, torch.split(images[:RANGE_IMAGES], 16), quantization(bits, method))


def learn(prepared: Prepared, images: Tensor, bits: str, budget: Budget, seed: int) -> Decided:
    """Ranges, SQuant's integers with corrected biases, and from there what blocks learn."""
    decided = _ranged(prepared.captured, images, bits, RECONSTRUCTION)
    network = moved(decided.float_module, prepared.device)
    return replace(decided, parameters=reconstruct(network, decided.parameters, images, reconstruction(budget, seed)))


def _finetuned(decided: Decided, images: Tensor, budget: Budget, seed: int, device: torch.device) -> Decided:
    network = moved(decided.float_module, device)
    return replace(decided, parameters=finetune(network, decided.parameters, images, finetuning(budget, seed)))


def _summary(cell: dict[str, Any]) -> str:
    return (
        f"{cell['network']:20} {cell['source']:12} seed {cell['seed']} {cell['bits']} {cell['method']:16} "
        f"{cell['seconds']:7.1f} s  drop {cell['drop_points']:6.2f} +- {cell['standard_error']:.2f}  "
        f"KL {cell['kl_to_float']:.4f}  verified {cell['verified']}"
    )
