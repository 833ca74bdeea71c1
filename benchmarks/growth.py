"""Does time grow as the number of images, and memory not at all? Images as a stream, a process for every count."""

from __future__ import annotations

import math
import resource
import statistics
import time
from typing import Any

import torch

from benchmarks import records
from benchmarks.networks import load_benchmarks
from benchmarks.rows import latest, unique
from benchmarks.timing import in_fresh_process
from dffg.config import SynthesisConfig
from dffg.graph.captured import capture
from dffg.machine.memory import reused_memory
from dffg.synthesis.synthesize import synthesize

SUITE = "growth"


def run_suite(networks: list[str], counts: list[int], threads: int) -> None:
    """Measure every count of images of every network, one after the other."""
    for network in networks:
        for count in counts:
            measured = in_fresh_process(measure, network, count, threads)
            records.append(SUITE, {"network": network, "count": count, "threads": threads, **measured})
            print(f"{network}, {count} images: {measured}", flush=True)


def measure(network: str, count: int, threads: int) -> dict[str, Any]:
    """Seconds of making so many images, and the peak memory of a process that makes them and keeps none."""
    torch.set_num_threads(threads)
    (benchmark,) = load_benchmarks([network])
    captured = capture(benchmark.model, spec=benchmark.spec)
    before = _peak_bytes()
    with reused_memory():
        for _ in synthesize(captured, SynthesisConfig(count=64, seed=1)):  # what only the first images cost
            pass
        started = time.perf_counter()
        made = sum(len(images) for images in synthesize(captured, SynthesisConfig(count=count)))
        seconds = time.perf_counter() - started
    return {"made": made, "seconds": seconds, "before_bytes": before, "peak_bytes": _peak_bytes()}


def exponent(counts: list[int], seconds: list[float]) -> float:
    """Slope of the straight line nearest to log seconds over log counts: 1 where time grows as the count does."""
    return statistics.linear_regression(list(map(math.log, counts)), list(map(math.log, seconds))).slope


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth_table() -> str:
    """Seconds and peak memory of synthesis by the number of images, with the exponent of the growth."""
    results = latest(records.read(SUITE), ("network", "count", "threads"))
    lines = ["| network | images | seconds | images/s | exponent of all | peak, GB |", "|---|---|---|---|---|---|"]
    for network in unique(results, "network"):
        here = sorted((r for r in results if r["network"] == network), key=lambda record: int(record["count"]))
        grown = exponent([r["count"] for r in here], [r["seconds"] for r in here]) if here[1:] else math.nan
        for r in here:
            lines.append(
                f"| {network} | {r['made']} | {r['seconds']:.1f} | {r['made'] / r['seconds']:.1f} | {grown:.3f} "
                f"| {r['peak_bytes'] / 1e9:.2f} |"
            )
    return "\n".join(lines)
