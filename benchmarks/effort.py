"""What more images and more steps bring: learned four bits against the time they take, in ONNX Runtime.

Reconstruction as in `lowbits`, with other budgets. The images of a small budget are the first of a larger one's, so
they are made once, and each budget is charged for its own. Cells that are in the results already are not measured
again.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import lowbits, records
from benchmarks.cells import measure as measure_cells
from benchmarks.lowbits import RECONSTRUCTION, Budget, Prepared, key, learn, synthesis
from benchmarks.networks import OURS, REAL, load_benchmarks
from benchmarks.rows import Records, current, headed, is_timed_beside_others, mean_and_deviation, spread
from dffg.machine.device import HOST
from dffg.spec import Array
from dffg.synthesis.synthesize import Progress, synthesize_set

SUITE = "effort"
BITS = "W4A4"
SOURCES = (OURS, REAL)
# Images and steps a block.
BUDGETS = "64x60,256x250,512x500,1024x500,1024x2000"


def run_suite(
    networks: list[str], seeds: list[int], sources: list[str], budgets: list[Budget], device: torch.device = HOST
) -> None:
    """Measure every cell that is not in the results yet, and append it. device: what makes images and learns."""
    done = {key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        groups = [
            [cell for cell in cells(benchmark.name, source, seed, budgets) if key(cell) not in done]
            for seed in seeds
            for source in sources
        ]
        wanted = [group for group in groups if group]
        measure_cells(SUITE, _measured, wanted, prepare=Prepared, shared=(benchmark, device), show=_summary)


def cells(network: str, source: str, seed: int, budgets: list[Budget]) -> list[dict[str, Any]]:
    """Every budget, with the whole configuration of what it is spent on."""
    return [
        {**cell, "images": budget.images, "steps": budget.steps}
        for budget in budgets
        for cell in lowbits.cells(network, source, seed, [BITS], [RECONSTRUCTION], budget)
    ]


def _budget(cell: dict[str, Any]) -> Budget:
    return Budget(images=int(cell["images"]), steps=int(cell["steps"]), tuning_steps=0)


def _measured(prepared: Prepared, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cells of one source and seed."""
    images, until = _images(prepared, wanted)
    for cell in wanted:
        budget = _budget(cell)
        started = time.perf_counter()
        learned = learn(prepared, torch.from_numpy(images[: budget.images]), BITS, budget, cell["seed"])
        seconds = {"learning": time.perf_counter() - started}
        if cell["source"] == OURS:
            seconds["images"] = until[budget.images]
        yield {**cell, "seconds": seconds, **prepared.measure(learned.insert())}


def _images(prepared: Prepared, wanted: list[dict[str, Any]]) -> tuple[Array, dict[int, float]]:
    """The images of the largest budget, and the seconds until there were as many as each budget has."""
    most, seed = max(cell["images"] for cell in wanted), wanted[0]["seed"]
    if wanted[0]["source"] == REAL:
        return prepared.benchmark.real_images(most, seed), {}
    until: dict[int, float] = {}
    started = time.perf_counter()

    def note(progress: Progress) -> None:
        for cell in wanted:
            if progress.images >= cell["images"]:
                until.setdefault(cell["images"], time.perf_counter() - started)

    largest = Budget(images=most, steps=1, tuning_steps=0)
    network = prepared.captured.on(prepared.device)
    return synthesize_set(network, synthesis(largest, RECONSTRUCTION, seed), progress=note).inputs, until


def _summary(cell: dict[str, Any]) -> str:
    seconds = ", ".join(f"{what} {spent:.0f} s" for what, spent in cell["seconds"].items())
    return (
        f"{cell['network']:20} {cell['source']:12} seed {cell['seed']} {cell['images']} images, {cell['steps']} steps, "
        f"{seconds}  drop {cell['drop_points']:6.2f} +- {cell['standard_error']:.2f}  KL {cell['kl_to_float']:.4f}"
    )


def results() -> Records:
    """The newest result of every cell with today's settings."""
    return current(SUITE, ("network", "source", "seed", "images", "steps", "device"), _settings)


def _settings(row: dict[str, Any]) -> Any:
    (cell,) = cells(row["network"], row["source"], row["seed"], [_budget(row)])
    return cell["config"]


def effort_table() -> str:
    """Drop and divergence by network, source and budget; mean and deviation over seeds."""
    lines = [
        "| network (float top-1, images) | images learned from | steps a block | source | learned on | seeds | minutes "
        "| drop | paired SE | KL to float |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in _groups():
        first = group[0]
        error = statistics.mean(r["standard_error"] for r in group)
        lines.append(
            f"| {headed(first['network'], first)} | {first['images']} "
            f"| {first['steps']} | {first['source']} | {first['device']} | {len(group)} | {_shown_minutes(group)} "
            f"| {spread(group, 'drop_points')} | {error:.2f} | {spread(group, 'kl_to_float')} |"
        )
    return "\n".join(lines)


def _groups() -> list[Records]:
    """Results of all seeds of a network, source, budget and device; small budgets first, synthetic images before real
    ones."""
    found = sorted(results(), key=_place)
    return [list(group) for _, group in itertools.groupby(found, _place)]


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["network"], record["images"], record["steps"], SOURCES.index(record["source"]), record["device"]


def _shown_minutes(group: Records) -> str:
    return "beside others" if is_timed_beside_others(group) else f"{_minutes(group):.1f}"


def _minutes(group: Records) -> float:
    seconds: float = statistics.median(sum(record["seconds"].values()) for record in group)
    return seconds / 60


def curves() -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Network -> source and device -> (minutes, top-1 in percent, its deviation), small budgets first, for the plot;
    those that nothing else ran beside."""
    shown: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for group in _groups():
        if is_timed_beside_others(group):
            continue
        mean, deviation = mean_and_deviation([r["float_top1"] - r["drop_points"] for r in group])
        curve = shown.setdefault(group[0]["network"], {}).setdefault(f"{group[0]['source']}, {group[0]['device']}", [])
        curve.append((_minutes(group), mean, deviation))
    return shown
