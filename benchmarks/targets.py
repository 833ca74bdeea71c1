"""The same network from every kind of file, for every runtime: accuracy, kernels, speed, each measured in its own."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from benchmarks.rows import headed, latest
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.metrics import agreement, compare
from dffg.export.runtime import Runtime, latency_ms
from dffg.export.runtimes import runtime_of
from dffg.export.verification import match_simulation
from dffg.graph.captured import Captured, capture
from dffg.models.load import load_model
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized
from dffg.spec import Array, ImageSpec
from dffg.synthesis.synthesize import synthesize_set
from dffg.targets import TARGETS

SUITE = "targets"
LAYERWISE_IMAGES = 16
MODULE, PROGRAM, ONNX = "module", ".pt2", ".onnx"
_DYNAMIC = ({0: Dim.DYNAMIC},)


def run_suite(networks: list[str], sources: list[str], targets: list[str]) -> None:
    """Quantize every source for every target at W8A8 with the default images of seed 0; append what the files do."""
    for benchmark in load_benchmarks(networks):
        images, answers = {}, {}
        for source in (MODULE, *(source for source in sources if source != MODULE)):
            captured = capture(SOURCES[source](benchmark.model, benchmark.spec), spec=benchmark.spec)
            images[source] = synthesize_set(captured, SynthesisConfig()).inputs
            for target in targets:
                try:
                    runtime = runtime_of(target)
                except InputError as error:
                    print(f"skipped {target}: {error}")
                    continue
                batches = torch.split(torch.from_numpy(images[source]), 16)
                quantized = simulate(captured, batches, QuantizationConfig(target=target))
                answers[source, target], measured = measure(benchmark, captured, quantized, runtime)
                beside = {
                    "images_apart": float(np.abs(images[source] - images[MODULE]).max()),
                    "top1_equal": agreement(answers[MODULE, target], answers[source, target]),
                }
                record = {"network": benchmark.name, "source": source, "target": target, **beside, **measured}
                records.append(SUITE, record)
                print(record, flush=True)


def _as_program(model: nn.Module, spec: ImageSpec) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(2, *spec.shape),), dynamic_shapes=_DYNAMIC), path)
        return load_model(str(path)).model


def _as_onnx(model: nn.Module, spec: ImageSpec) -> Any:
    """With BatchNorm kept, as docs/models.md says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        example = (torch.zeros(2, *spec.shape),)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(model, example, path, dynamo=True, optimize=False, dynamic_shapes=_DYNAMIC)
        return load_model(str(path)).model


SOURCES: dict[str, Callable[[nn.Module, ImageSpec], Any]] = {
    MODULE: lambda model, spec: model,
    PROGRAM: _as_program,
    ONNX: _as_onnx,
}


def measure(
    benchmark: Benchmark, captured: Captured, quantized: Quantized, runtime: Runtime
) -> tuple[Array, dict[str, Any]]:
    """Write both files and run them in the runtime; the quantized one's answers, and what is known of it."""
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
        return answer, {
            **asdict(compare(expected, answer, data.labels)),
            "verified": match.holds,
            "layerwise_equal_share": match.equal_share,
            "integer_kernels": kernels.integer,
            "float_kernels": kernels.float,
            "size_bytes": {label: runtime.size_bytes(path) for label, path in paths.items()},
            "latency_ms": _latency(runtime, paths, first[:1]) if runtime.is_timed else None,
        }


def _latency(runtime: Runtime, paths: dict[str, Path], batch: Array) -> dict[str, float]:
    return latency_ms({label: runtime.open(path, torch.get_num_threads()).run for label, path in paths.items()}, batch)


def _place(record: dict[str, Any]) -> tuple[str, int, int]:
    return record["network"], list(SOURCES).index(record["source"]), list(TARGETS).index(record["target"])


def targets_table() -> str:
    """Drop in points, kernels and milliseconds by network, source and target, beside the same from the module."""
    rows = [
        "| network (float top-1, images) | from | target | drop, points | paired SE | layers in int8 "
        "| verified | KB, float -> int8 | ms, float -> int8 | images apart | same top-1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(latest(records.read(SUITE), ("network", "source", "target")), key=_place):
        beside = "- | -"
        if record["source"] != MODULE:
            beside = f"{record['images_apart']:.1g} | {record['top1_equal']:.1%}"
        layers = record["integer_kernels"] + record["float_kernels"]
        size = " -> ".join(f"{size / 1000:.0f}" for size in record["size_bytes"].values())
        times = record["latency_ms"]
        speed = " -> ".join(f"{time:.1f}" for time in times.values()) if times else "not run here"
        rows.append(
            f"| {headed(record['network'], record)} | {record['source']} "
            f"| {record['target']} "
            f"| {record['drop_points']:.2f} "
            f"| {record['standard_error']:.2f} | {record['integer_kernels']} of {layers} "
            f"| {'yes' if record['verified'] else 'no'} | {size} | {speed} | {beside} |"
        )
    return "\n".join(rows)
