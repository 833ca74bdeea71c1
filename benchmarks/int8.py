"""What int8 costs in accuracy, in ONNX Runtime, with calibration images from several sources through one quantizer."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cells, records
from benchmarks.networks import OURS, REAL, Benchmark, load_benchmarks, outputs_of
from benchmarks.rows import Records, current, headed, latest, spread, unique
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.evaluation.metrics import agreement, compare
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import count_kernels, run
from dffg.export.verification import match_simulation
from dffg.graph.captured import Captured, capture
from dffg.machine.distributed import Workers
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized
from dffg.spec import Array
from dffg.synthesis.synthesize import synthesize_set

SUITE = "int8"
COUNT = 64
LAYERWISE_IMAGES = 32

Source = Callable[[Benchmark, Captured, int], Array]


def config_of(source: str, seed: int) -> dict[str, Any]:
    """What our images are made with; nothing for other sources, whose settings are in their names."""
    return asdict(SynthesisConfig(count=COUNT, seed=seed)) if source == OURS else {}


def _dffg(benchmark: Benchmark, captured: Captured, seed: int) -> Array:
    return synthesize_set(captured, SynthesisConfig(count=COUNT, seed=seed)).inputs


def _real(benchmark: Benchmark, captured: Captured, seed: int) -> Array:
    return benchmark.real_images(COUNT, seed)


def _noise(benchmark: Benchmark, captured: Captured, seed: int) -> Array:
    return benchmark.noise(COUNT, seed)


def _uniform(benchmark: Benchmark, captured: Captured, seed: int) -> Array:
    low, high = benchmark.spec.input_bounds()
    return (low + (high - low) * np.random.default_rng(seed).random((COUNT, *benchmark.spec.shape))).astype(np.float32)


def _ones(benchmark: Benchmark, captured: Captured, seed: int) -> Array:
    return np.ones((COUNT, *benchmark.spec.shape), dtype=np.float32)


SOURCES: dict[str, Source] = {
    OURS: _dffg,
    REAL: _real,
    "normal noise": _noise,
    "uniform pixels": _uniform,
    "all ones": _ones,
}


def run_suite(
    networks: list[str], seeds: list[int], sources: list[str], ranges: list[str], workers: Workers | None = None
) -> None:
    """Measure every cell and append it to the results."""
    for benchmark in load_benchmarks(networks):
        items = [(seed, source, ranges) for seed, source in itertools.product(seeds, sources)]
        cells.measure(SUITE, _measured, items, prepare=_prepared, shared=benchmark, workers=workers)


def _prepared(benchmark: Benchmark) -> tuple[Benchmark, Captured, Array]:
    captured = capture(benchmark.model, spec=benchmark.spec)
    return benchmark, captured, outputs_of(benchmark.model, benchmark.evaluation)


def _measured(
    prepared: tuple[Benchmark, Captured, Array], item: tuple[int, str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Cells of one seed and source, with any rules for ranges."""
    (benchmark, captured, reference), (seed, source, ranges) = prepared, item
    images = torch.split(torch.from_numpy(SOURCES[source](benchmark, captured, seed)), 16)
    for name in ranges:
        quantized = simulate(captured, images, QuantizationConfig(activation_ranges=name))
        yield _measure(benchmark, captured, quantized, reference, source, name, seed)


def _measure(
    benchmark: Benchmark,
    captured: Captured,
    quantized: Quantized,
    reference: Array,
    source: str,
    ranges: str,
    seed: int,
) -> dict[str, Any]:
    assert benchmark.evaluation.labels is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_quantized(quantized, captured.spec, path)
        answer = np.concatenate(list(run(path, benchmark.evaluation.batches())))
        accuracy = compare(reference, answer, benchmark.evaluation.labels)
        kernels = count_kernels(path)
        record = {
            "network": benchmark.name,
            "source": source,
            "ranges": ranges,
            "seed": seed,
            "images": COUNT,
            "config": config_of(source, seed),
            "drop_points": accuracy.drop_points,
            "standard_error": accuracy.standard_error,
            "float_top1": accuracy.float_top1,
            "kl_to_float": accuracy.kl_to_float,
            "kl_standard_error": accuracy.kl_standard_error,
            "count": accuracy.count,
            "integer_kernels": kernels.integer,
            "float_kernels": kernels.float,
        }
        if source == OURS:
            record.update(_beside_simulation(benchmark, quantized, path, answer))
    return record


def _beside_simulation(benchmark: Benchmark, quantized: Quantized, path: Path, answer: Array) -> dict[str, float]:
    """The runtime beside the torch simulation, on the real evaluation images."""
    simulated = outputs_of(quantized.module, benchmark.evaluation)
    first = torch.from_numpy(next(benchmark.evaluation.batches(LAYERWISE_IMAGES)))
    match = match_simulation(quantized, path, first)
    assert benchmark.evaluation.labels is not None
    beside = compare(simulated, answer, benchmark.evaluation.labels)
    return {
        "simulation_top1_equal": agreement(simulated, answer),
        "simulation_drop_points": beside.drop_points,
        "simulation_standard_error": beside.standard_error,
        "layerwise_equal_share": match.equal_share,
        "layerwise_max_steps": match.max_abs_difference_in_steps,
    }


def results() -> Records:
    """The newest result of every cell; ours only where it was measured with today's settings."""
    return current(SUITE, ("network", "source", "ranges", "seed"), lambda row: config_of(row["source"], row["seed"]))


def int8_table() -> str:
    """W8A8 drops by network and source, in points: mean and deviation over seeds, and the KL divergence."""
    found = results()
    lines = [
        "| network (float top-1, images) | calibration | drop, points | paired SE | KL to float x 1000 |",
        "|---|---|---|---|---|",
    ]
    for network in unique(found, "network"):
        for source in SOURCES:
            cell = [r for r in found if r["network"] == network and r["source"] == source and r["ranges"] == "mse"]
            if cell:
                head = headed(network, cell[0])
                error = statistics.mean(r["standard_error"] for r in cell)
                drop, kl = spread(cell, "drop_points"), spread(cell, "kl_to_float", 1000)
                lines.append(f"| {head} | {source} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def runtime_table() -> str:
    """Kernels, agreement of runtime and simulation on the evaluation images, speed."""
    found = [result for result in results() if result["source"] == OURS]
    speed = {r["network"]: r for r in latest(records.read("latency"), ("network", "batch"))}
    lines = [
        "| network | integer / float kernels | integers equal, worst layer | same top-1 as simulation "
        "| top-1 apart, points | float ms | int8 ms | speed-up | ms beside quantize_static |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in unique(found, "network"):
        cell = [r for r in found if r["network"] == network and r["ranges"] == "mse"]
        time = speed.get(network)
        timing = (
            f"{time['float_ms']:.2f} | {time['ours_ms']:.2f} | {time['speedup']:.2f}x | "
            f"{time['ratio_to_quantize_static']:.2f}x"
            if time
            else "- | - | - | -"
        )
        lines.append(
            f"| {network} | {cell[0]['integer_kernels']} / {cell[0]['float_kernels']} "
            f"| {min(r['layerwise_equal_share'] for r in cell):.3%} "
            f"| {spread(cell, 'simulation_top1_equal', 100)} % | {spread(cell, 'simulation_drop_points')} "
            f"| {timing} |"
        )
    return "\n".join(lines)
