"""What do ranges cost beside the images they are chosen from? Both in one process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import records
from benchmarks.networks import load_benchmarks
from benchmarks.rows import latest
from benchmarks.timing import in_fresh_process, medians, ratios
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.graph.captured import Captured, capture
from dffg.quant.decide import decide, ranges_from
from dffg.synthesis.synthesize import synthesize_set

SUITE = "ranges"
COUNT = 64
GOAL = 0.1


def run_suite(networks: list[str], threads: int, rounds: int) -> None:
    """Measure every network in a process of its own."""
    for network in networks:
        measured = in_fresh_process(measure, network, threads, rounds)
        records.append(SUITE, {"network": network, "images": COUNT, "threads": threads, **measured})
        print(records.read(SUITE)[-1], flush=True)


def measure(network: str, threads: int, rounds: int) -> dict[str, Any]:
    """A row of some rounds; one before them is not counted, for what only the first costs."""
    torch.set_num_threads(threads)
    (benchmark,) = load_benchmarks([network])
    captured = capture(benchmark.model, spec=benchmark.spec)
    return {**describe([_round(captured) for _ in range(rounds + 1)][1:]), "environment": records.environment()}


def _round(captured: Captured) -> dict[str, float]:
    """Images, the ranges of activations, and all of a calibration: the ranges again, and weights rounded."""
    synthesis, quantization = SynthesisConfig(count=COUNT), QuantizationConfig()
    made, images = _timed(lambda: synthesize_set(captured, synthesis))
    batches = torch.split(torch.from_numpy(images.inputs), synthesis.batch_size)
    ranges, _ = _timed(lambda: ranges_from(captured, batches, quantization))
    calibration, _ = _timed(lambda: decide(captured, batches, quantization))
    return {"synthesis": made, "ranges": ranges, "calibration": calibration}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def describe(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds; shares are medians of the shares within a round."""
    return {"rounds": rounds, "seconds": medians(rounds), "of_synthesis": ratios(rounds, "synthesis")}


def ranges_table() -> str:
    """Seconds of images, ranges and all of a calibration, and their share of the first, below what was aimed at."""
    lines = [
        "| network | threads | rounds | synthesis, s | ranges, s | of synthesis | and rounding, s | of synthesis |",
        "|---|---|---|---|---|---|---|---|",
        f"| at most | - | - | - | - | {GOAL:.0%} | - | - |",
    ]
    for record in latest(records.read(SUITE), ("network", "threads")):
        seconds, shares = record["seconds"], record["of_synthesis"]
        lines.append(
            f"| {record['network']} | {record['threads']} | {len(record['rounds'])} | {seconds['synthesis']:.2f} "
            f"| {seconds['ranges']:.2f} | {shares['ranges']:.1%} "
            f"| {seconds['calibration']:.2f} | {shares['calibration']:.1%} |"
        )
    return "\n".join(lines)
