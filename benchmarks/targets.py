"""The same images and the same ranges for every runtime: accuracy, kernels and speed, each measured in its own."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from benchmarks.tables import latest
from dffg.captured import Captured, capture
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.metrics import compare
from dffg.export.runtime import Runtime, latency_ms
from dffg.export.runtimes import runtime_of
from dffg.export.verification import match_simulation
from dffg.images import Array
from dffg.quant.simulate import Quantized, simulate
from dffg.synthesis import synthesize_set

SUITE = "targets"
LAYERWISE_IMAGES = 16


def run_suite(networks: list[str], targets: list[str]) -> None:
    """Quantize for every target at W8A8 with the default images of seed 0, and append what its files do."""
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        images = synthesize_set(captured, SynthesisConfig()).inputs
        for target in targets:
            try:
                runtime = runtime_of(target)
            except InputError as error:
                print(f"skipped {target}: {error}")
                continue
            quantized = simulate(captured, torch.split(torch.from_numpy(images), 16), QuantizationConfig(target=target))
            record = {"network": benchmark.name, "target": target, **measure(benchmark, captured, quantized, runtime)}
            records.append(SUITE, record)
            print(record, flush=True)


def measure(benchmark: Benchmark, captured: Captured, quantized: Quantized, runtime: Runtime) -> dict[str, Any]:
    """Write both files and run them in the runtime."""
    data = benchmark.evaluation
    assert data.labels is not None
    with tempfile.TemporaryDirectory() as folder:
        paths = {label: Path(folder) / label / runtime.file for label in ("float", "quantized")}
        for path in paths.values():
            path.parent.mkdir()
        runtime.write_float(quantized.float_module, captured.spec, paths["float"])
        runtime.write(quantized, captured.spec, paths["quantized"])
        expected, answer = (np.concatenate(list(runtime.run(path, data.batches()))) for path in paths.values())
        first = next(data.batches(LAYERWISE_IMAGES))
        match = match_simulation(quantized, paths["quantized"], torch.from_numpy(first), runtime)
        kernels = runtime.count_kernels(paths["quantized"])
        return {
            **asdict(compare(expected, answer, data.labels)),
            "verified": match.holds,
            "layerwise_equal_share": match.equal_share,
            "integer_kernels": kernels.integer,
            "float_kernels": kernels.float,
            "size_bytes": {label: runtime.size_bytes(path) for label, path in paths.items()},
            "latency_ms": _latency(runtime, paths, first[:1]) if runtime.is_timed else None,
        }


def _latency(runtime: Runtime, paths: dict[str, Path], batch: Array) -> dict[str, float]:
    return latency_ms({label: runtime.open(path, torch.get_num_threads()) for label, path in paths.items()}, batch)


def targets_table() -> str:
    """Drop in points, kernels and milliseconds by network and target."""
    rows = [
        "| network (float top-1, images) | target | drop, points | paired SE | layers in int8 | KB, float -> int8 "
        "| ms, float -> int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in latest(records.read(SUITE), ("network", "target")):
        layers = record["integer_kernels"] + record["float_kernels"]
        size = " -> ".join(f"{size / 1000:.0f}" for size in record["size_bytes"].values())
        times = record["latency_ms"]
        speed = " -> ".join(f"{time:.1f}" for time in times.values()) if times else "not run here"
        rows.append(
            f"| {record['network']} ({record['float_top1']:.2f} %, {record['count']}) | {record['target']} "
            f"| {record['drop_points']:.2f} "
            f"| {record['standard_error']:.2f} | {record['integer_kernels']} of {layers} | {size} | {speed} |"
        )
    return "\n".join(rows)
