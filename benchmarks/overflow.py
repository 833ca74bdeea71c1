"""What 8 bits cost where the processor adds products in 16 bits, with all bits of the weights and with one less."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import int8, latency, records
from benchmarks.networks import Benchmark, load_benchmarks, outputs_of
from benchmarks.rows import Records, headed, latest, mean_and_deviation, spread, unique
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.metrics import compare
from dffg.export.onnx import write_float, write_quantized
from dffg.export.onnxruntime import open_file
from dffg.export.runtime import latency_ms
from dffg.graph.captured import Captured, capture
from dffg.graph.fold import fold_batch_norms
from dffg.images import SyntheticSet
from dffg.machine.processor import adds_in_16_bits
from dffg.quant.decide import simulate
from dffg.quant.placement import prepare
from dffg.quant.quantized import Quantized
from dffg.spec import Array
from dffg.synthesis.synthesize import synthesize_set

SUITE = "overflow"
FLOAT, ELSEWHERE = "float", ", where nothing overflows"
_BATCH = 16

Write = Callable[[Captured, SyntheticSet, Path], Quantized | None]


def _ours(**options: Any) -> Write:
    def write(captured: Captured, images: SyntheticSet, path: Path) -> Quantized:
        batches = torch.split(torch.from_numpy(images.inputs), _BATCH)
        quantized = simulate(captured, batches, QuantizationConfig(**options))
        write_quantized(quantized, captured.spec, path)
        return quantized

    return write


def _theirs(reduce_range: bool) -> Write:
    def write(captured: Captured, images: SyntheticSet, path: Path) -> None:
        latency.quantize_static(path.with_name("float.onnx"), path, images, reduce_range=reduce_range)

    return write


FILES: dict[str, Write] = {
    "dffg, to nearest": _ours(reduce_range=False, weight_rounding="nearest", bias_correction="none"),
    "dffg, reduced range": _ours(reduce_range=True),
    "quantize_static": _theirs(False),
    "quantize_static, reduced range": _theirs(True),
}


def run_suite(networks: list[str], seeds: list[int]) -> None:
    """Measure every network and seed that is not measured yet. Raises InputError where nothing overflows."""
    if not adds_in_16_bits():
        raise InputError("this processor adds products in 32 bits, so nothing overflows; run it on one without VNNI.")
    done = {(r["network"], r["seed"]) for r in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        for seed in seeds:
            if (benchmark.name, seed) not in done:
                _measure(benchmark, captured, seed)


def _measure(benchmark: Benchmark, captured: Captured, seed: int) -> None:
    images = synthesize_set(captured, SynthesisConfig(count=int8.COUNT, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(FILES)}
        paths[FLOAT] = Path(folder) / "float.onnx"
        write_float(prepare(fold_batch_norms(captured)), captured.spec, paths[FLOAT])
        quantized = {name: write(captured, images, paths[name]) for name, write in FILES.items()}
        runs = {name: open_file(path).run for name, path in paths.items()}
        milliseconds = latency_ms(runs, images.inputs[:1])
        answers = {
            name: np.concatenate([run(batch) for batch in benchmark.evaluation.batches()]) for name, run in runs.items()
        }
    for name, ours in quantized.items():
        if ours is not None:
            answers[f"{name}{ELSEWHERE}"] = outputs_of(ours.module, benchmark.evaluation)
    reference = answers.pop(FLOAT)
    for name, answer in answers.items():
        _append(benchmark, name, seed, reference, answer, {key: milliseconds.get(key) for key in (name, FLOAT)})


def _append(
    benchmark: Benchmark, name: str, seed: int, reference: Array, answer: Array, milliseconds: dict[str, float | None]
) -> None:
    assert benchmark.evaluation.labels is not None
    record: dict[str, Any] = {
        "network": benchmark.name,
        "file": name,
        "seed": seed,
        "images": int8.COUNT,
        "milliseconds": milliseconds[name],
        "float_milliseconds": milliseconds[FLOAT],
        **asdict(compare(reference, answer, benchmark.evaluation.labels)),
    }
    records.append(SUITE, record)
    print(record, flush=True)


def overflow_table() -> str:
    """Drops of every file by network, in points, with divergence from float and time beside float's."""
    results = latest(records.read(SUITE), ("network", "file", "seed"))
    lines = [
        "| network (float top-1, images) | file | seeds | drop | SE | KL to float x 1000 | time of float's |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in unique(results, "network"):
        here = [r for r in results if r["network"] == network]
        lines += [_row(network, name, [r for r in here if r["file"] == name]) for name in unique(here, "file")]
    return "\n".join(lines)


def _row(network: str, name: str, cell: Records) -> str:
    head = headed(network, cell[0])
    error = mean_and_deviation([r["standard_error"] for r in cell])[0]
    times = [r["milliseconds"] / r["float_milliseconds"] for r in cell if r["milliseconds"] is not None]
    columns = [
        *(str(len(cell)), spread(cell, "drop_points"), f"{error:.2f}", spread(cell, "kl_to_float", 1000)),
        f"{mean_and_deviation(times)[0]:.2f}" if times else "-",
    ]
    return f"| {head} | {name} | {' | '.join(columns)} |"
