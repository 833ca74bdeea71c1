"""Widths of their own for every layer beside one width for all, at equal size, in ONNX Runtime.

All layers take part. Both are rounded by SQuant with biases corrected from BatchNorm, without learning. Sensitivities
are measured once for a seed, and every budget is solved with them. Cells that are in the results already are not
measured again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import records
from benchmarks.cells import measure as measure_cells
from benchmarks.lowbits import Prepared
from benchmarks.networks import load_benchmarks
from benchmarks.rows import Records, current, headed, mean_and_deviation, spread, unique
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.machine.device import HOST
from dffg.machine.distributed import Workers
from dffg.quant.allocation import Problem, allocate
from dffg.quant.calibrate import Seen
from dffg.quant.decide import look, settle
from dffg.quant.mixed import complete_widths, pose
from dffg.quant.parameters import Parameters
from dffg.quant.quantized import insert
from dffg.quant.widths import uniform_widths, with_known_range
from dffg.synthesis.synthesize import synthesize_set

SUITE = "mixed"
IMAGES = 64
UNIFORM, MIXED = "uniform", "mixed"
# Shares of the bytes of W8A8; W4A8 of all layers is 0.5.
SIZES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.75)
UNIFORM_BITS = ("W8A8", "W4A8")
# Names of all widths and budgets, with what kind they are.
KINDS = {**dict.fromkeys(UNIFORM_BITS, UNIFORM), **dict.fromkeys((f"{size:g}x" for size in SIZES), MIXED)}
_OPTIONS: dict[str, Any] = {"weight_rounding": "squant", "bias_correction": "analytic", "equalize": "none"}


def run_suite(networks: list[str], seeds: list[int], workers: Workers | None = None) -> None:
    """Measure every cell that is not in the results yet, and append it."""
    done = {key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        groups = [[cell for cell in cells(benchmark.name, seed) if key(cell) not in done] for seed in seeds]
        wanted = [group for group in groups if group]
        measure_cells(
            SUITE, _measured, wanted, prepare=Prepared, shared=(benchmark, HOST), show=_summary, workers=workers
        )


def _measured(prepared: Prepared, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cells of one seed."""
    captured = prepared.captured
    made = synthesize_set(captured, SynthesisConfig(count=IMAGES, seed=wanted[0]["seed"]))
    images = torch.split(torch.from_numpy(made.inputs), 16)
    seen = look(captured, images, _quantization("W8A8"))
    problem = pose(seen, with_known_range(_quantization(f"{SIZES[0]:g}x")))
    for cell in wanted:
        quantized = insert(seen.float_module, _settled(cell, seen, problem))
        yield {**cell, **prepared.measure(quantized)}


def _summary(row: dict[str, Any]) -> str:
    return str({**row, "config": ""})


def cells(network: str, seed: int) -> list[dict[str, Any]]:
    """Every budget, and the uniform widths, with the configuration of what makes them."""
    return [
        {"network": network, "seed": seed, "kind": kind, "at": at, "config": _config_of(at, seed)}
        for at, kind in KINDS.items()
    ]


def _config_of(at: str, seed: int) -> dict[str, Any]:
    return {"synthesis": asdict(SynthesisConfig(count=IMAGES, seed=seed)), **asdict(_quantization(at))}


def key(record: dict[str, Any]) -> str:
    """What makes a cell."""
    return repr([record[name] for name in ("network", "seed", "kind", "at", "config")])


def _quantization(at: str) -> QuantizationConfig:
    if KINDS[at] == UNIFORM:
        return QuantizationConfig(bits=at, **_OPTIONS)
    return QuantizationConfig(bits="mixed", budget=f"size={at}", **_OPTIONS)


def _settled(cell: dict[str, Any], seen: Seen, problem: Problem) -> Parameters:
    config = with_known_range(_quantization(cell["at"]))
    if cell["kind"] == UNIFORM:
        return settle(seen, uniform_widths(seen.float_module, seen.placement, config), config)
    chosen = allocate(problem, float(cell["at"].removesuffix("x")))
    return settle(seen, complete_widths(chosen.widths, seen, config), config)


def results() -> Records:
    """The newest result of every cell with today's settings."""
    return current(SUITE, ("network", "seed", "kind", "at"), _settings)


def _settings(row: dict[str, Any]) -> dict[str, Any] | None:
    return _config_of(row["at"], row["seed"]) if row["at"] in KINDS else None


def mixed_table() -> str:
    """Size of the file, drop and divergence by network and budget; mean and deviation over seeds."""
    found = results()
    lines = [
        "| network (float top-1, images) | weights | MB | seeds | drop | paired SE | KL to float |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in unique(found, "network"):
        groups = {name: [r for r in found if (r["network"], r["at"]) == (network, name)] for name in KINDS}
        for name, group in sorted(groups.items(), key=lambda entry: -_megabytes(entry[1])):
            if group:
                head = headed(network, group[0])
                label = name if name in UNIFORM_BITS else f"mixed, {name} of W8"
                error = statistics.mean(r["standard_error"] for r in group)
                lines.append(
                    f"| {head} | {label} | {_megabytes(group):.2f} | {len(group)} | {spread(group, 'drop_points')} "
                    f"| {error:.2f} | {spread(group, 'kl_to_float')} |"
                )
    return "\n".join(lines)


def _megabytes(group: Records) -> float:
    return statistics.mean(r["size_bytes"] for r in group) / 1e6 if group else 0.0


def frontiers() -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Network -> kind -> (megabytes, KL to float, its deviation) from small to large, for the plot."""
    found = results()
    shown: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for network in unique(found, "network"):
        for kind in (MIXED, UNIFORM):
            here = [r for r in found if (r["network"], r["kind"]) == (network, kind)]
            groups = [[r for r in here if r["at"] == name] for name in unique(here, "at")]
            points = [(_megabytes(group), *mean_and_deviation([r["kl_to_float"] for r in group])) for group in groups]
            shown.setdefault(network, {})[kind] = sorted(points)
    return shown
