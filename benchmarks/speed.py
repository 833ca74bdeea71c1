"""Seconds to make the same images: ours, ZeroQ and Sony MCT, in one run, in turns.

Slow methods are timed for some iterations and the rest of their published number is extrapolated; the record says so.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from benchmarks.peers import mct
from dffg.baselines import chain_of
from dffg.captured import Captured, capture
from dffg.config import SynthesisConfig
from dffg.synthesis import chains_needed, synthesize_set

SUITE = "speed"
COUNT = 64
TIMED_ITERATIONS = 12
PUBLISHED_ITERATIONS = 500


def run_suite(networks: list[str], rounds: int) -> None:
    """Measure every network and append medians over the rounds."""
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        times: dict[str, list[float]] = {"dffg": [], "zeroq": [], "mct": []}
        reason = None
        for _ in range(rounds):
            times["dffg"].append(_seconds_of_ours(captured))
            times["zeroq"].append(_extrapolated_seconds(captured, "zeroq"))
            try:
                times["mct"].append(_seconds_of_peer(benchmark))
            except mct.PeerUnavailable as error:
                reason = str(error)
        record: dict[str, Any] = {
            "network": benchmark.name,
            "images": COUNT,
            "rounds": rounds,
            "timed_iterations": TIMED_ITERATIONS,
            "iterations": PUBLISHED_ITERATIONS,
            "no_mct_because": reason,
            "all_seconds": times,
            **{f"{name}_seconds": statistics.median(values) for name, values in times.items() if values},
            **{
                f"{name}_ratio": statistics.median([slow / ours for slow, ours in zip(values, times["dffg"])])
                for name, values in times.items()
                if values and name != "dffg"
            },
        }
        records.append(SUITE, record)
        print(record, flush=True)


def _seconds_of_ours(captured: Captured) -> float:
    """Everything, from folding to the last image, at the defaults."""
    started = time.perf_counter()
    synthesize_set(captured, SynthesisConfig(count=COUNT))
    return time.perf_counter() - started


def _extrapolated_seconds(captured: Captured, generator: str) -> float:
    """Median of some iterations, times all of all chains. On our engine, which is faster than the original."""
    config = SynthesisConfig(count=COUNT, generator=generator)
    visits = itertools.islice(chain_of(captured, config)(0), TIMED_ITERATIONS + 1)
    times = [time.perf_counter() for _ in visits]
    each = statistics.median(after - before for before, after in itertools.pairwise(times))
    return each * config.steps * chains_needed(config)


def _seconds_of_peer(benchmark: Benchmark) -> float:
    with tempfile.TemporaryDirectory() as folder:
        made = mct.generate(benchmark.name, COUNT, 0, TIMED_ITERATIONS, Path(folder) / "images.npz")
    return float(made["seconds_per_iteration"]) * PUBLISHED_ITERATIONS
