"""Seconds to make the same images: ours, its rivals' re-implementations and Sony MCT, in one run, in turns.

Ours is timed whole, from folding to the last image. The others are timed for some iterations, and the rest of their
published number is extrapolated; the record says so.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import arena, records
from benchmarks.networks import OURS, Benchmark, load_benchmarks
from benchmarks.peers import mct
from benchmarks.rows import latest, unique
from benchmarks.timing import medians, ratios
from dffg.config import JOINT, SynthesisConfig
from dffg.graph.captured import Captured, capture
from dffg.synthesis.generators import chain_of
from dffg.synthesis.synthesize import synthesize_set

SUITE = "speed"
COUNT = arena.COUNT
TIMED_ITERATIONS = 10
# With batches that divide the number of images, so that none are wasted; genie's own 128 large pictures do not fit into
# 24 GiB either.
RIVALS: dict[str, dict[str, Any]] = {
    "adam-snapshots": {},
    "zeroq": {"batch_size": 32},
    "dsg": {"batch_size": 32},
    "dgh": {},
    "deepinversion": {"batch_size": 32},
    "genie": {"batch_size": 32},
}


def run_suite(networks: list[str], rounds: int) -> None:
    """Measure every network and append medians over the rounds."""
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        _seconds_of_ours(captured)  # the first passes also pay for memory and for choosing kernels
        taken = [dict(_round(benchmark, captured)) for _ in range(rounds)]
        records.append(SUITE, describe(benchmark.name, taken))
        print(records.read(SUITE)[-1], flush=True)


def describe(network: str, taken: list[dict[str, float]]) -> dict[str, Any]:
    """What is stored of some rounds, each with the seconds that every generator needs for `COUNT` images."""
    seconds = medians(taken)
    passes = {name: _passes_per_image(name) for name in seconds}
    return {
        "network": network,
        "images": COUNT,
        "timed_iterations": TIMED_ITERATIONS,
        "rounds": taken,
        "seconds": seconds,
        "times_ours": ratios(taken, OURS),
        "passes_per_image": passes,
        "seconds_per_pass": {name: seconds[name] / (passes[name] * COUNT) for name in seconds},
    }


def _round(benchmark: Benchmark, captured: Captured) -> Iterator[tuple[str, float]]:
    yield OURS, _seconds_of_ours(captured)
    for name in RIVALS:
        yield name, _extrapolated_seconds(captured, name)
    try:
        yield arena.PEER, _seconds_of_peer(benchmark)
    except mct.PeerUnavailable as error:
        print(f"skipped {arena.PEER} on {benchmark.name}: {error}", flush=True)


def _passes_per_image(name: str) -> float:
    if name == arena.PEER:
        return arena.PEER_ITERATIONS
    return arena.passes_per_image(_config(name))


def _config(name: str) -> SynthesisConfig:
    return SynthesisConfig(count=COUNT, generator=name, **RIVALS.get(name, {}))


def _seconds_of_ours(captured: Captured) -> float:
    started = time.perf_counter()
    synthesize_set(captured, SynthesisConfig(count=COUNT))
    return time.perf_counter() - started


def _extrapolated_seconds(captured: Captured, name: str) -> float:
    """Median of some iterations, times all passes. On our folded network, which is faster than the originals."""
    config = _config(name)
    visits = itertools.islice(chain_of(captured, config)(0), TIMED_ITERATIONS + 1)
    times = [time.perf_counter() for _ in visits]
    each = statistics.median(after - before for before, after in itertools.pairwise(times))
    images = COUNT if name in JOINT else config.batch_size  # of one iteration
    return each / images * _passes_per_image(name) * COUNT


def _seconds_of_peer(benchmark: Benchmark) -> float:
    with tempfile.TemporaryDirectory() as folder:
        made = mct.generate(
            benchmark.name, COUNT, 0, TIMED_ITERATIONS, Path(folder) / "images.npz", threads=torch.get_num_threads()
        )
    return float(made["seconds_per_iteration"]) * arena.PEER_ITERATIONS


def speed_table() -> str:
    """Seconds for the same number of images with every generator's own number of passes, and how often ours fits in."""
    results = latest(records.read(SUITE), ("network",))
    names = unique([{"name": name} for record in results for name in record["seconds"]], "name")
    lines = [f"| network | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for record in results:
        cells = [_time(record, name) for name in names]
        lines.append(f"| {record['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(record: dict[str, Any], name: str) -> str:
    if name not in record["seconds"]:
        return "-"
    seconds = record["seconds"][name]
    shown = f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
    if name == OURS:
        return shown
    times = record["times_ours"][name]
    return f"{shown} ({times:.{0 if times >= 10 else 1}f}x)"
