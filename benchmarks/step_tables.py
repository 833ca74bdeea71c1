"""The table of one pass: what `step.py` measured, of each part the last time."""

from __future__ import annotations

from typing import Any

from benchmarks import records
from dffg.machine.device import CPU

PARTS = ("reference", "fast, bfloat16", "fast, compiled", "fast, sampled", "zeroq", "mct")
SETTING = ("network", "size", "batch", "threads", "device")
OF_PARTS = ("seconds", "times_floor")


def steps() -> list[dict[str, Any]]:
    """One pass for every network, resolution, batch size, number of threads and device; of each part its last time.

    A run may measure some parts only. A ratio is to the convolutions of the run that it was measured in.
    """
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in ({"device": CPU, **stored} for stored in records.read("step")):
        setting = tuple(record[name] for name in SETTING)
        earlier = merged.get(setting, {})
        merged[setting] = {**record, **{name: {**earlier.get(name, {}), **record[name]} for name in OF_PARTS}}
    return list(merged.values())


def step_table() -> str:
    """One pass: milliseconds of the convolutions alone, and how many times that everything else takes."""
    shown = steps()
    parts = [name for name in PARTS if any(name in record["seconds"] for record in shown)]
    lines = [
        "| network, pixels | batch | threads, or device | convolutions alone | ours | images/s "
        f"| {' | '.join(parts)} |",
        f"|---|---|---|---|---|---|{'---|' * len(parts)}",
    ]
    for record in shown:
        ratios = record["times_floor"]
        others = [f"{ratios[name]:.2f}x" if name in ratios else "-" for name in parts]
        where = record["threads"] if record["device"] == CPU else record["device"]
        lines.append(
            f"| {record['network']}, {record['size']} | {record['batch']} | {where} "
            f"| {1e3 * record['seconds']['floor']:.0f} ms | {ratios['fast']:.2f}x "
            f"| {record['batch'] / record['seconds']['fast']:.1f} | {' | '.join(others)} |"
        )
    return "\n".join(lines)
