"""More than one machine: what a Ray task costs beside its work, measured here, and what many workers would make of it.

The measurements are of one machine with few processors; everything with more workers is simulated from them
(`cluster.py`), with a network of 1 Gbit/s.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.cluster import MEGABIT, Load, simulate
from benchmarks.networks import Benchmark, load_benchmarks
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured, capture, to_bytes
from dffg.machine.distributed import LOCAL, Workers, ray_workers
from dffg.pipeline.steps import quantize
from dffg.storage.output import file_hash
from dffg.synthesis.snapshots import ChainState, unpacked
from dffg.synthesis.synthesize import prepare_chains, run_packed_chain, synthesize_set

SUITE = "scale"
BANDWIDTH = 1000 * MEGABIT
COUNTS = (1, 10, 100, 1000)
IMAGES, MODELS = 50_000, 1000
_SHORT, _ROUNDS, _PROCESSORS = 200, 10, (1, 2)


def run_suite(network: str, chains: int, tasks: int) -> None:
    """Measure on this machine with one thread for every task, simulate, and keep both."""
    torch.set_num_threads(1)
    (benchmark,) = load_benchmarks([network])
    captured = capture(benchmark.model, spec=benchmark.spec, name=network)
    one = SynthesisConfig()
    config = SynthesisConfig(count=chains * one.batch_size * (one.steps - one.burn_in))
    started = time.perf_counter()
    made = synthesize_set(captured, config)
    alone = time.perf_counter() - started
    measured: dict[str, Any] = {"network": network, "chains": chains, "tasks": tasks, "alone_seconds": alone}
    for count in _PROCESSORS:
        measured[f"on_{count}"] = _measure(captured, config, chains, tasks, count, made.inputs.tobytes())
    measured["job"] = _measure_job(benchmark)
    measured["images_per_chain"], measured["image_bytes"] = len(made) // chains, made.inputs[0].nbytes
    records.append(SUITE, {**measured, "simulated": _simulated(measured)})
    print(json.dumps(records.read(SUITE)[-1], indent=2))


def sleep(seconds: float, _: int) -> None:
    """A task whose work is known to the millisecond, whatever else the machine does."""
    time.sleep(seconds)


def give(state: ChainState, _: int) -> ChainState:
    """A task that costs nothing but its result."""
    return state


def _measure(
    captured: Captured, config: SynthesisConfig, chains: int, tasks: int, count: int, expected: bytes
) -> dict[str, Any]:
    started = time.perf_counter()
    with ray_workers(LOCAL, count=count) as workers:
        start = time.perf_counter() - started
        _seconds(workers, sleep, range(count), 0.5)  # each worker has started
        second = _seconds(workers, sleep, range(tasks * count), 1.0) / tasks - 1.0
        nothing = _seconds(workers, sleep, range(_SHORT), 0.0) / _SHORT
        started = time.perf_counter()
        made = synthesize_set(captured, config, workers=workers)
        together = time.perf_counter() - started
        if made.inputs.tobytes() != expected:
            raise RuntimeError("the images are not those of one process")
        times, program = _chain_times(workers, captured, config, chains)
        state = next(iter(workers.map(run_packed_chain, [0], prepare=prepare_chains, shared=program))).result()
        collect = _collecting(workers, state, captured)
    return {
        "start_seconds": start,
        "overhead_seconds": second,
        "nothing_seconds": nothing,
        "chains_seconds": together,
        "chain_seconds": times,
        "prepare_seconds": _prepare_seconds(program),
        "collect_seconds": collect,
        "program_bytes": len(program[0]),
        "state_bytes": state["images"].numpy().nbytes,
    }


def _seconds(workers: Workers, function: Any, items: Iterable[int], shared: Any) -> float:
    started = time.perf_counter()
    for finished in workers.map(function, items, shared=shared):
        finished.result()
    return time.perf_counter() - started


def timed_chain(prepared: Any, chain: int) -> float:
    """Seconds of one chain in a worker."""
    started = time.perf_counter()
    run_packed_chain(prepared, chain)
    return time.perf_counter() - started


def _chain_times(workers: Workers, captured: Captured, config: SynthesisConfig, chains: int) -> tuple[list[float], Any]:
    program = (to_bytes(captured), captured.spec, config)
    found = workers.map(timed_chain, range(chains), prepare=prepare_chains, shared=program)
    return [finished.result() for finished in found], program


def _prepare_seconds(program: Any) -> float:
    started = time.perf_counter()
    prepare_chains(program)
    return time.perf_counter() - started


def _collecting(workers: Workers, state: ChainState, captured: Captured) -> float:
    """Of this process, for every chain: fetching what it kept, and making float images of it."""
    taken = []
    found = workers.map(give, range(_ROUNDS), shared=state)
    next(found).result()  # the worker has fetched what it gives
    for _ in range(_ROUNDS - 1):
        started = time.perf_counter()
        list(unpacked(next(found).result(), 0, captured.spec))
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _measure_job(benchmark: Benchmark) -> dict[str, Any]:
    """One whole `dffg quantize`, as a job of `dffg batch` runs it, and what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        result = quantize(benchmark.model, out, spec=benchmark.spec)
        written = {path.name: path.stat().st_size for path in out.iterdir()}
        assert file_hash(out / "model.onnx") == result.files["model.onnx"]
    seconds = asdict(result.seconds)
    return {"seconds": seconds["total"], "stages": seconds, "bytes": sum(written.values())}


def _simulated(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Both cases for every number of workers."""
    here = measured["on_1"]
    chains = Load(
        tasks=-(-IMAGES // measured["images_per_chain"]),
        work=[seconds + max(0.0, here["overhead_seconds"]) for seconds in here["chain_seconds"]],
        prepare=here["prepare_seconds"],
        collect=here["collect_seconds"],
        sent=here["program_bytes"],
        fetched=0.0,
        returned=here["state_bytes"],
    )
    jobs = Load(
        tasks=MODELS,
        work=[measured["job"]["seconds"]],
        prepare=0.0,
        collect=here["nothing_seconds"],
        sent=0.0,
        fetched=here["program_bytes"],
        returned=measured["job"]["bytes"],
    )
    found = []
    for case, load in ((f"{IMAGES:,} images", chains), (f"{MODELS:,} networks", jobs)):
        for workers in COUNTS:
            outcome = simulate(load, workers=workers, bytes_per_second=BANDWIDTH)
            found.append({"case": case, "workers": workers, **asdict(outcome), "bottleneck": outcome.bottleneck})
    return found


def scale_table() -> str:
    """What was measured, on one worker and on two."""
    record = records.read(SUITE)[-1:]
    lines = ["| measured | 1 worker | 2 workers |", "|---|---|---|"]
    for found in record:
        on = [found[f"on_{count}"] for count in _PROCESSORS]
        alone = found["alone_seconds"]
        rows = {
            "starting Ray, s": [f"{one['start_seconds']:.1f}" for one in on],
            "a task of one second, beyond it": [f"{one['overhead_seconds']:.1%}" for one in on],
            "a task of nothing, ms": [f"{1e3 * one['nothing_seconds']:.1f}" for one in on],
            f"{found['chains']} chains, s ({alone:.0f} without Ray)": [f"{one['chains_seconds']:.0f}" for one in on],
            "times as fast as without Ray": [f"{alone / one['chains_seconds']:.2f}" for one in on],
            "a worker's preparation, s": [f"{one['prepare_seconds']:.1f}" for one in on],
            "collecting the images of a chain, ms": [f"{1e3 * one['collect_seconds']:.0f}" for one in on],
        }
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def scale_simulated_table() -> str:
    """What many workers would make of it."""
    parts = ("workers", "link", "collecting")
    lines = [
        f"| case | workers | time | {' | '.join(f'{part} busy' for part in parts)} |",
        f"|---|---|---|{'---|' * 3}",
    ]
    for record in records.read(SUITE)[-1:]:
        for row in record["simulated"]:
            cells = [f"{row['busy'][part]:.0%}" for part in parts]
            minutes = row["seconds"] / 60
            lines.append(f"| {row['case']} | {row['workers']} | {minutes:.1f} min | {' | '.join(cells)} |")
    return "\n".join(lines)
