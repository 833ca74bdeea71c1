"""Tables of the ablation as Markdown."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks import ablation, records
from benchmarks.networks import REAL
from benchmarks.rows import Records, latest, ratio, unique

DECISIVE = (
    "slack 0.2",
    "variability none",
    "slack 0.2, no variability",
    "raw gradient",
    "per image",
    "noise of 0.1",
    "decay 0.5",
)


def ablation_table() -> str:
    """KL to float beside that of the defaults, one factor at a time: geometric mean over quantizers; below 1 is better.

    The deviation is over seeds, of the logarithm. The last column is the geometric mean over networks.
    """
    results = latest(records.read(ablation.SUITE), ("network", "change", "seed"))
    networks = unique(results, "network")
    lines = [
        f"| factor | set to | {' | '.join(networks)} | all |",
        f"|---|---|{'---|' * (len(networks) + 1)}",
    ]
    for change in (REAL, "noise", *ablation.CHANGES):
        logs = [log_ratios(results, network, change) for network in networks]
        if any(logs):
            factor = next(r["factor"] for r in results if r["change"] == change)
            cells = [ratio(values) for values in logs]
            overall = ratio([statistics.mean(values) for values in logs if values], with_deviation=False)
            whole = overall if all(logs) else f"{overall} ({sum(map(bool, logs))} of {len(logs)})"
            lines.append(f"| {factor} | {change} | {' | '.join(cells)} | {whole} |")
    return "\n".join(lines)


def by_quantizer_table() -> str:
    """KL beside that of what a change differs from, for every quantizer, for changes that a default was chosen from.

    Ratios are paired over the seeds that both have: their geometric mean, the standard error of its logarithm, seeds.
    """
    results = latest(records.read(ablation.SUITE), ("network", "change", "seed"))
    lines = [f"| network, quantizer | {' | '.join(DECISIVE)} |", f"|---|{'---|' * len(DECISIVE)}"]
    for network in unique(results, "network"):
        here = {(r["change"], r["seed"]): r["kl"] for r in results if r["network"] == network}
        for quantizer in next(iter(here.values())):
            cells = [_paired(here, change, quantizer) for change in DECISIVE]
            lines.append(f"| {network} {quantizer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _paired(here: dict[tuple[str, int], dict[str, float]], change: str, quantizer: str) -> str:
    beside = ablation.CHANGES[change].beside
    logs = [
        math.log(kl[quantizer] / here[beside, seed][quantizer])
        for (name, seed), kl in here.items()
        if name == change and (beside, seed) in here
    ]
    if len(logs) < 2:
        return "-"
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(statistics.mean(logs)):.2f} +- {error:.2f} ({len(logs)})"


def log_ratios(
    results: Records, network: str, change: str, *, key: str = "change", beside: str | None = None
) -> list[float]:
    """Per seed: mean log KL over quantizers, minus that of what it is beside, averaged over the seeds they share."""
    of_network = [r for r in results if r["network"] == network]
    seeds = {r["seed"] for r in of_network if r[key] == change}
    if beside is None:
        beside = ablation.CHANGES[change].beside if change in ablation.CHANGES else ablation.BASE
    compared = [log_kl(r) for r in of_network if r[key] == beside and r["seed"] in seeds]
    return [log_kl(r) - statistics.mean(compared) for r in of_network if r[key] == change and compared]


def log_kl(record: dict[str, Any]) -> float:
    return statistics.mean(math.log(value) for value in record["kl"].values())
