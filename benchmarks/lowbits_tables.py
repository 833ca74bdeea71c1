"""Tables of fewer than 8 bits."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import claims, lowbits
from benchmarks.networks import OURS, REAL
from benchmarks.rows import Records, current, headed, is_timed_beside_others, spread, unique
from dffg.machine.device import CPU

_NONE = "-"


def results() -> Records:
    """The newest result of every cell with today's settings."""
    return current(lowbits.SUITE, ("network", "source", "seed", "bits", "method"), _settings)


def _settings(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["network"] not in lowbits.BUDGETS:
        return None
    cells = lowbits.cells(row["network"], row["source"], row["seed"], [row["bits"]], [row["method"]])
    return cells[0]["config"] if cells else None


def lowbits_table() -> str:
    """Drops from float in points by widths, method and source; mean and deviation over seeds."""
    found = results()
    lines = [
        "| network (float top-1, images) | widths | method | seeds | synthetic | real images | noise | paired SE "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in unique(found, "network"):
        for bits in lowbits.BITS:
            for method in lowbits.METHODS:
                cell = [r for r in found if (r["network"], r["bits"], r["method"]) == (network, bits, method)]
                if cell:
                    lines.append(_row(network, bits, method, cell))
    return "\n".join(lines)


def lowbits_short_table() -> str:
    """Drops with synthetic images, one column for every pair of widths; the standard deviation is over seeds."""
    found = [record for record in results() if record["source"] == OURS]
    head = " | ".join(lowbits.BITS)
    lines = [f"| network (float top-1, images) | method | {head} |", f"|---|---|{'---|' * len(lowbits.BITS)}"]
    for network in unique(found, "network"):
        for method in (lowbits.RANGES, lowbits.ANALYTIC, lowbits.RECONSTRUCTION, lowbits.FINETUNING):
            cells = [r for r in found if (r["network"], r["method"]) == (network, method)]
            parts = [[r for r in cells if r["bits"] == bits] for bits in lowbits.BITS]
            drops = [spread(part, "drop_points") if part else _NONE for part in parts]
            if cells:
                name = headed(network, cells[0])
                lines.append(f"| {name} | {method} | {' | '.join(drops)} |")
    return "\n".join(lines)


def lowbits_claims_table() -> str:
    """Ours beside real images and noise, where real images went through the same steps."""
    found = results()
    lines = [claims.HEAD]
    for network in unique(found, "network"):
        for bits in lowbits.BITS:
            for method in (lowbits.ANALYTIC, lowbits.RECONSTRUCTION, lowbits.FINETUNING):
                cell = [r for r in found if (r["network"], r["bits"], r["method"]) == (network, bits, method)]
                ours, real, noise = (
                    _summary([r for r in cell if r["source"] == source]) for source in (OURS, REAL, lowbits.NOISE)
                )
                if ours and real:
                    lines.append(claims.row(f"{network} {bits} {method}", ours, real, noise))
    return "\n".join(lines)


def _summary(cell: Records) -> claims.Summary | None:
    return claims.summary(cell[0]["source"], cell) if cell else None


def _row(network: str, bits: str, method: str, cell: Records) -> str:
    by_source = {source: [r for r in cell if r["source"] == source] for source in lowbits.SOURCES}
    drops = [spread(part, "drop_points") if part else _NONE for part in by_source.values()]
    ours = by_source[OURS] or cell
    error = statistics.mean(r["standard_error"] for r in ours)
    head = headed(network, cell[0])
    seeds = len({r["seed"] for r in ours})
    return f"| {head} | {bits} | {method} | {seeds} | {' | '.join(drops)} | {error:.2f} | {shown_seconds(ours)} |"


def shown_seconds(cell: Records) -> str:
    """Their median; those that were measured elsewhere than on a CPU, or beside other tasks, say so."""
    devices = [name for name in unique(cell, "device") if name != CPU]
    beside = ["beside others"] if is_timed_beside_others(cell) else []
    return ", ".join([f"{statistics.median(r['seconds'] for r in cell):.0f}", *devices, *beside])


def lowbits_runtime_table() -> str:
    """What the runtime does with the written files: kernels, agreement with the simulation layer by layer, size."""
    found = [r for r in results() if r["source"] == OURS]
    lines = [
        "| network | widths | files | all integer kernels | integers equal, worst layer | most steps apart | KB |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in unique(found, "network"):
        for bits in lowbits.BITS:
            cell = [r for r in found if (r["network"], r["bits"]) == (network, bits)]
            if cell:
                equal = min(r["layerwise_equal_share"] for r in cell)
                steps = max(r["layerwise_max_steps"] for r in cell)
                size = statistics.median(r["size_bytes"] for r in cell) / 1000
                integer = sum(r["float_kernels"] == 0 for r in cell)
                lines.append(f"| {network} | {bits} | {len(cell)} | {integer} | {equal:.3%} | {steps} | {size:.0f} |")
    return "\n".join(lines)
