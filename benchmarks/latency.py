"""Milliseconds per image of the float file, our int8 file, and the one ONNX Runtime's own quantizer makes."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.networks import load_benchmarks
from dffg.config import SynthesisConfig
from dffg.export.onnx import write_float, write_quantized
from dffg.export.onnxruntime import session
from dffg.graph.captured import capture
from dffg.handover import INPUT_NAME, calibration_reader
from dffg.images import SyntheticSet
from dffg.quant.decide import simulate
from dffg.spec import Array
from dffg.synthesis.synthesize import synthesize_set

SUITE = "latency"


def run_suite(networks: list[str], rounds: int, batch: int) -> None:
    """Measure in turns, one session alive at a time, and append medians and ratios of each round."""
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        images = synthesize_set(captured, SynthesisConfig())
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / f"{name}.onnx" for name in ("float", "ours", "quantize_static")}
            quantized = simulate(captured, torch.split(torch.from_numpy(images.inputs), 16))
            write_float(quantized.float_module, captured.spec, paths["float"])
            write_quantized(quantized, captured.spec, paths["ours"])
            quantize_static(paths["float"], paths["quantize_static"], images)
            record = _compare(benchmark.name, paths, images.inputs[:batch], rounds)
        records.append(SUITE, record)
        print(record, flush=True)


def quantize_static(
    source: Path,
    target: Path,
    images: SyntheticSet,
    extra_options: dict[str, Any] | None = None,
    *,
    reduce_range: bool = False,
) -> None:
    """ONNX Runtime's quantizer in its fast form: U8S8, per channel, Q/DQ, on the same images."""
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as run
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    run(
        prepared,
        target,
        calibration_reader(images, INPUT_NAME, batch_size=16),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=reduce_range,
        extra_options=extra_options,
    )


def _compare(network: str, paths: dict[str, Path], batch: Array, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds):
        order = list(paths.items()) if turn % 2 else list(reversed(paths.items()))
        for name, path in order:
            times[name].append(_median_ms(path, batch))
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["quantize_static"])]
    speedups = [before / after for before, after in zip(times["float"], times["ours"])]
    return {
        "network": network,
        "batch": len(batch),
        "rounds": rounds,
        **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
        "speedup": statistics.median(speedups),
        "ratio_to_quantize_static": statistics.median(ratios),
        "all_ms": times,
    }


def _median_ms(path: Path, batch: Array, repeats: int = 40) -> float:
    opened = session(path)
    feed = {opened.get_inputs()[0].name: batch}
    for _ in range(5):
        opened.run(None, feed)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        opened.run(None, feed)
        times.append((time.perf_counter() - started) * 1e3)
    del opened
    gc.collect()
    return statistics.median(times)
