"""Tables of stored results as Markdown. A row is a mean over seeds with its standard deviation."""

from __future__ import annotations

import math
import statistics
from typing import Any

from scipy.stats import spearmanr

from benchmarks import ablation, diversity, growth, int8, records
from benchmarks.networks import REAL

Records = list[dict[str, Any]]


def int8_results() -> Records:
    """The newest result of every cell; ours only where it was measured with today's settings."""
    results = [r for r in records.read(int8.SUITE) if r.get("config", {}) == int8.config_of(r["source"], r["seed"])]
    return latest(results, ("network", "source", "ranges", "seed"))


def int8_table() -> str:
    """W8A8 drops by network and source, in points: mean and deviation over seeds, and the KL divergence."""
    results = int8_results()
    lines = [
        "| network (float top-1, images) | calibration | drop, points | paired SE | KL to float x 1000 |",
        "|---|---|---|---|---|",
    ]
    for network in unique(results, "network"):
        for source in int8.SOURCES:
            cell = [r for r in results if r["network"] == network and r["source"] == source and r["ranges"] == "mse"]
            if cell:
                head = headed(network, cell[0])
                error = statistics.mean(r["standard_error"] for r in cell)
                drop, kl = spread(cell, "drop_points"), spread(cell, "kl_to_float", 1000)
                lines.append(f"| {head} | {source} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def runtime_table() -> str:
    """Kernels, agreement of runtime and simulation on the evaluation images, speed."""
    results = [result for result in int8_results() if result["source"] == int8.OURS]
    speed = {r["network"]: r for r in latest(records.read("latency"), ("network", "batch"))}
    lines = [
        "| network | integer / float kernels | integers equal, worst layer | same top-1 as simulation "
        "| top-1 apart, points | float ms | int8 ms | speed-up | ms beside quantize_static |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in unique(results, "network"):
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
            f"| {spread(cell, 'simulation_top1_equal', 100)} % | {spread(cell, 'simulation_drop_points')} "
            f"| {timing} |"
        )
    return "\n".join(lines)


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


DECISIVE = (
    "slack 0.2",
    "variability none",
    "slack 0.2, no variability",
    "raw gradient",
    "per image",
    "noise of 0.1",
    "decay 0.5",
)


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


def ratio(logs: list[float], *, with_deviation: bool = True) -> str:
    if not logs:
        return "-"
    deviation = f" +- {statistics.stdev(logs):.2f}" if with_deviation and len(logs) > 1 else ""
    return f"{math.exp(statistics.mean(logs)):.2f}{deviation}"


def speed_table() -> str:
    """Seconds for the same number of images with every generator's own number of passes, and how often ours fits in."""
    results = latest(records.read("speed"), ("network",))
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
    if name == "dffg":
        return shown
    times = record["times_ours"][name]
    return f"{shown} ({times:.{0 if times >= 10 else 1}f}x)"


def growth_table() -> str:
    """Seconds and peak memory of synthesis by the number of images, with the exponent of the growth."""
    results = latest(records.read(growth.SUITE), ("network", "count", "threads"))
    lines = ["| network | images | seconds | images/s | exponent of all | peak, GB |", "|---|---|---|---|---|---|"]
    for network in unique(results, "network"):
        here = sorted((r for r in results if r["network"] == network), key=lambda record: int(record["count"]))
        grown = growth.exponent([r["count"] for r in here], [r["seconds"] for r in here]) if here[1:] else math.nan
        for r in here:
            lines.append(
                f"| {network} | {r['made']} | {r['seconds']:.1f} | {r['made'] / r['seconds']:.1f} | {grown:.3f} "
                f"| {r['peak_bytes'] / 1e9:.2f} |"
            )
    return "\n".join(lines)


DIVERSITY_FIGURES = {
    "feature_distance": "distance of features",
    "statistics_spread": "spread of statistics, of real",
    "near_duplicates": "near duplicates in a chain",
    "gradient_correlation": "gradients of two images",
    "gradient_persistence": "gradients of two steps",
}


def diversity_table() -> str:
    """Diversity of images by setting and network, means over seeds, with what they do to the network."""
    results = latest(records.read("diversity"), ("network", "setting", "seed"))
    lines = [
        f"| network | images | {' | '.join(DIVERSITY_FIGURES.values())} | KL beside the defaults |",
        f"|---|---|{'---|' * (len(DIVERSITY_FIGURES) + 1)}",
    ]
    for network in unique(results, "network"):
        here = [r for r in results if r["network"] == network]
        real = _average(here, REAL, "statistics_spread")
        for setting in unique(here, "setting"):
            values = [_average(here, setting, name) for name in DIVERSITY_FIGURES]
            if values[1] is not None and real:
                values[1] /= real
            shown = ["-" if value is None else f"{value:.2f}" for value in values]
            divergence = ratio(log_ratios(here, network, setting, key="setting", beside="defaults"))
            lines.append(f"| {network} | {setting} | {' | '.join(shown)} | {divergence} |")
    return "\n".join(lines)


FEWEST_TO_RANK = 5
OURS = (diversity.DEFAULTS, *diversity.CHANGES)


def diversity_predicts_table() -> str:
    """Rank correlation over settings of ours of each figure with the divergence."""
    results = latest(records.read("diversity"), ("network", "setting", "seed"))
    lines = [f"| network | {' | '.join(DIVERSITY_FIGURES.values())} |", f"|---|{'---|' * len(DIVERSITY_FIGURES)}"]
    for network in unique(results, "network"):
        here = [r for r in results if r["network"] == network and r["setting"] in OURS]
        lines.append(f"| {network} | {' | '.join(_correlation(here, name) for name in DIVERSITY_FIGURES)} |")
    return "\n".join(lines)


def _correlation(here: Records, name: str) -> str:
    pairs = [
        (value, statistics.mean(log_kl(r) for r in here if r["setting"] == setting))
        for setting in unique(here, "setting")
        if (value := _average(here, setting, name)) is not None
    ]
    if len(pairs) < FEWEST_TO_RANK or len({value for value, _ in pairs}) == 1:
        return "-"
    found = spearmanr(*zip(*pairs))
    return f"{found.statistic:+.2f} (p = {found.pvalue:.2f}, {len(pairs)} settings)"


def _average(here: Records, setting: str, name: str) -> float | None:
    values = [r[name] for r in here if r["setting"] == setting and r[name] is not None]
    return statistics.mean(values) if values else None


def latest(results: Records, key: tuple[str, ...]) -> Records:
    """The newest result of every cell."""
    return list({tuple(result[name] for name in key): result for result in results}.values())


def is_timed_beside_others(cell: Records) -> bool:
    """Whether other tasks ran while seconds were measured."""
    return any("tasks_at_once" in result for result in cell)


def headed(network: str, record: dict[str, Any]) -> str:
    """A network with what its drops are from, and on how many examples: the first column of a table."""
    return f"{network} ({record['float_top1']:.2f} %, {record['count']})"


def unique(results: Records, name: str) -> list[Any]:
    return list(dict.fromkeys(result[name] for result in results))


def spread(cell: Records, name: str, factor: float = 1.0) -> str:
    values = [factor * result[name] for result in cell]
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} +- {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Over seeds; one seed has no deviation, and gets 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
