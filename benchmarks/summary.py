"""The figures a newcomer looks for first, one row a network, from the results of other suites."""

from __future__ import annotations

from benchmarks import int8, lowbits, lowbits_tables, records
from benchmarks.networks import OURS, REAL
from benchmarks.rows import Records, headed, latest, spread, unique

_NOISE, _NONE = "normal noise", "-"


def summary_table() -> str:
    """Drops at 8 bits by source, speed in ONNX Runtime, and drops at learned 4 bits; deviations are over seeds."""
    eight = [r for r in int8.results() if r["ranges"] == "mse"]
    four = [r for r in lowbits_tables.results() if (r["bits"], r["method"]) == ("W4A4", lowbits.RECONSTRUCTION)]
    speed = {r["network"]: f"{r['speedup']:.1f}x" for r in latest(records.read("latency"), ("network", "batch"))}
    lines = [
        "| network (float top-1, images) | W8A8, dffg | W8A8, real images | W8A8, noise | speed, float = 1 "
        "| W4A4 learned, dffg | W4A4 learned, real images |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in unique(eight + four, "network"):
        here = [r for r in eight + four if r["network"] == network]
        drops = [
            *(_drop(eight, network, source) for source in (OURS, REAL, _NOISE)),
            speed.get(network, _NONE),
            *(_drop(four, network, source) for source in (OURS, REAL)),
        ]
        lines.append(f"| {headed(network, here[0])} | {' | '.join(drops)} |")
    return "\n".join(lines)


def _drop(found: Records, network: str, source: str) -> str:
    cell = [r for r in found if (r["network"], r["source"]) == (network, source)]
    return spread(cell, "drop_points") if cell else _NONE
