"""Tables of the README and the docs, rendered from the stored results between markers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import records

ROOT = Path(__file__).parents[1]
Records = list[dict[str, Any]]


def int8_table() -> str:
    """W8A8 drops by network and source, in points: mean and deviation over seeds, and the KL divergence."""
    results = _latest(records.read("int8"), ("network", "source", "ranges", "seed"))
    lines = [
        "| network (float top-1, images) | calibration | drop, points | paired SE | KL to float x 1000 |",
        "|---|---|---|---|---|",
    ]
    for network in _unique(results, "network"):
        for source in _unique(results, "source"):
            cell = [r for r in results if r["network"] == network and r["source"] == source and r["ranges"] == "mse"]
            if cell:
                head = f"{network} ({cell[0]['float_top1']:.2f} %, {cell[0]['count']})"
                error = statistics.mean(r["standard_error"] for r in cell)
                drop, kl = _spread(cell, "drop_points"), _spread(cell, "kl_to_float", 1000)
                lines.append(f"| {head} | {source} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def runtime_table() -> str:
    """Kernels, agreement of runtime and simulation on the evaluation images, speed."""
    results = [
        r for r in _latest(records.read("int8"), ("network", "source", "ranges", "seed")) if r["source"] == "dffg"
    ]
    speed = {r["network"]: r for r in _latest(records.read("latency"), ("network", "batch"))}
    lines = [
        "| network | integer / float kernels | integers equal, worst layer | same top-1 as simulation "
        "| top-1 apart, points | float ms | int8 ms | speed-up | ms beside quantize_static |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in _unique(results, "network"):
        cell = [r for r in results if r["network"] == network and r["ranges"] == "mse"]
        time = speed.get(network)
        timing = (
            f"{time['float_ms']:.2f} | {time['ours_ms']:.2f} | {time['speedup']:.2f}x | "
            f"{time['ratio_to_quantize_static']:.2f}x"
            if time
            else "- | - | - | -"
        )
        lines.append(
            f"| {network} | {cell[0]['integer_kernels']} / {cell[0]['float_kernels']} "
            f"| {min(r['layerwise_equal_share'] for r in cell):.3%} "
            f"| {_spread(cell, 'simulation_top1_equal', 100)} % | {_spread(cell, 'simulation_drop_points')} "
            f"| {timing} |"
        )
    return "\n".join(lines)


def defaults_table() -> str:
    """KL to float by setting; lower is better."""
    results = _latest(records.read("defaults"), ("network", "images", "quantizer", "seed"))
    quantizers = _unique(results, "quantizer")
    lines = [
        f"| network | images | {' | '.join(quantizers)} |",
        f"|---|---|{'---|' * len(quantizers)}",
    ]
    for network in _unique(results, "network"):
        for images in _unique(results, "images"):
            cells = [
                [r for r in results if (r["network"], r["images"], r["quantizer"]) == (network, images, quantizer)]
                for quantizer in quantizers
            ]
            if all(cells):
                row = " | ".join(_spread(cell, "kl", 1000) for cell in cells)
                lines.append(f"| {network} | {images} ({len(cells[0])} seeds) | {row} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "int8": int8_table,
    "runtime": runtime_table,
    "defaults": defaults_table,
}


def main(*, check: bool = False) -> int:
    """Rewrite every table between its markers; with `check`, only say whether one is out of date."""
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = path.read_text(encoding="utf-8")
        after = re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", _replace, before, flags=re.DOTALL)
        if after != before:
            stale.append(path.name)
            if not check:
                path.write_text(after, encoding="utf-8")
    print(f"{'out of date' if check else 'rendered'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


def _replace(match: re.Match[str]) -> str:
    return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"


def _latest(results: Records, key: tuple[str, ...]) -> Records:
    """The newest result of every cell."""
    return list({tuple(result[name] for name in key): result for result in results}.values())


def _unique(results: Records, name: str) -> list[Any]:
    return list(dict.fromkeys(result[name] for result in results))


def _spread(cell: Records, name: str, factor: float = 1.0) -> str:
    values = [factor * result[name] for result in cell]
    mean = statistics.mean(values)
    return f"{mean:.2f} +- {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
