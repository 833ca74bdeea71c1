"""How long does a user wait? The whole of `dffg quantize`, from the start of its process to its end, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.networks import IMAGENET_MEAN, IMAGENET_STD
from benchmarks.rows import latest
from benchmarks.timing import medians

SUITE = "command"
COUNT = 64
LIMITS = (None, "1GB")
_ROOT = Path(__file__).parents[1]
_CIFAR = ["--input", "3x32x32", "--mean", ",".join(map(str, IMAGENET_MEAN)), "--std", ",".join(map(str, IMAGENET_STD))]
NETWORKS = {
    "efficientnet_lite0": ["demo:efficientnet_lite0"],
    "mobilenet_v2": ["demo:mobilenet_v2"],
    "cifar10_resnet20": ["benchmarks.networks:cifar10_resnet20", *_CIFAR],
}
# What is shown, what it is made of, and what it must not exceed on EfficientNet-Lite0.
COLUMNS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "until the first pass": (("first_pass",), 6),
    "capture": (("capture",), None),
    "synthesis": (("synthesis",), 12),
    "ranges and rounding": (("calibration",), None),
    "held-out images": (("held_out_images",), None),
    "export and verification": (("export", "verify"), 12),
    "all": (("all",), 35),
}
PEAK_GOAL = 1.5


def run_suite(networks: list[str], threads: int, rounds: int, limits: tuple[str | None, ...] = LIMITS) -> None:
    """Measure every network with and without a limit of memory, which take turns."""
    for network in networks:
        taken: dict[str | None, list[dict[str, Any]]] = {limit: [] for limit in limits}
        for turn in range(rounds):
            first = turn % len(limits)
            for limit in (*limits[first:], *limits[:first]):
                taken[limit].append(measure(network, limit, threads))
        for limit, measured in taken.items():
            row = {"network": network, "images": COUNT, "threads": threads, "memory_limit": limit}
            records.append(SUITE, {**row, **describe(measured)})
            print(records.read(SUITE)[-1], flush=True)


def measure(network: str, limit: str | None, threads: int) -> dict[str, Any]:
    """Seconds of one command and of its stages, and the most memory that its process held."""
    with tempfile.TemporaryDirectory() as folder:
        mark, out = Path(folder) / "first-pass", Path(folder) / "out"
        options = ["--images", str(COUNT), "--out", str(out), "--quiet", *(["--memory-limit", limit] if limit else [])]
        arguments = ["quantize", *NETWORKS[network], *options]
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.first_pass", str(mark), *arguments],
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.time() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"dffg {' '.join(arguments)} ended with {process.returncode}.")
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        first_pass = float(mark.read_text(encoding="utf-8")) - started
    return {
        "seconds": {**report["seconds"], "first_pass": first_pass, "all": seconds},
        "peak_bytes": used.ru_maxrss * 1024,
        "environment": report["environment"],
    }


def describe(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the seconds, and the largest peak."""
    return {
        "rounds": [{"seconds": one["seconds"], "peak_bytes": one["peak_bytes"]} for one in rounds],
        "seconds": medians([one["seconds"] for one in rounds]),
        "peak_bytes": max(one["peak_bytes"] for one in rounds),
        "environment": rounds[-1]["environment"],
    }


def command_table() -> str:
    """Seconds by stage, and the peak memory, below what was aimed at."""
    goals = ["-" if most is None else f"{most}" for _, most in COLUMNS.values()]
    lines = [
        f"| network | `--memory-limit` | threads | rounds | {' | '.join(COLUMNS)} | peak, GB |",
        f"|---|---|---|---|{'---|' * len(COLUMNS)}---|",
        f"| at most, on efficientnet_lite0 | - | 2 | - | {' | '.join(goals)} | {PEAK_GOAL} |",
    ]
    for record in latest(records.read(SUITE), ("network", "memory_limit", "threads")):
        cells = [f"{sum(record['seconds'][part] for part in parts):.1f}" for parts, _ in COLUMNS.values()]
        lines.append(
            f"| {record['network']} | {record['memory_limit'] or '-'} | {record['threads']} | {len(record['rounds'])} "
            f"| {' | '.join(cells)} | {record['peak_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)
