"""Tables of stored results as Markdown. A row is a mean over seeds with its standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import ablation, arena, records

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


ARENA_COLUMNS = (
    ("cifar10_resnet20", "W4A4 minmax"),
    ("cifar10_resnet20", "W4A4 mse"),
    ("cifar10_resnet56", "W4A4 minmax"),
    ("cifar10_resnet56", "W4A4 mse"),
    ("kws_dscnn", "W6A6 mse"),
    ("efficientnet_lite0", "W6A6 minmax"),
    ("efficientnet_lite0", "W6A6 mse"),
    ("mobilenet_v2", "W6A6 mse"),
)


def arena_table() -> str:
    """Top-1 drop in points where the data matters most, one row per generator at its own settings."""
    cells = _latest(records.read(arena.SUITE), ("network", "label", "seed", "count"))
    shown = [(network, scored) for network, scored in ARENA_COLUMNS if any(c["network"] == network for c in cells)]
    heads = [f"{network} {scored}" for network, scored in shown]
    lines = [f"| images | passes | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for label in _arena_labels(cells):
        of_label = [cell for cell in cells if cell["label"] == label]
        columns = [_arena_drop(of_label, network, scored) for network, scored in shown]
        if any(column != "-" for column in columns):
            lines.append(f"| {label} | {of_label[0]['passes_per_image']:g} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _arena_labels(cells: Records) -> list[str]:
    """In the order of the full suite."""
    order = [one.label for one in arena.SUITES["full"].contestants]
    known = _unique(cells, "label")
    return [label for label in order if label in known] + [label for label in known if label not in order]


def _arena_drop(cells: Records, network: str, scored: str) -> str:
    return _arena_spread(_arena_scores(cells, network, scored), "drop_points")


def _arena_scores(cells: Records, network: str, scored: str) -> Records:
    """Scores of one quantizer; noise with sigma ranges has its own ranges in every column."""
    bits = scored.split()[0]
    return [
        cell["scores"].get(scored) or cell["scores"][f"{bits} sigma"]
        for cell in cells
        if cell["network"] == network and (scored in cell["scores"] or f"{bits} sigma" in cell["scores"])
    ]


def _arena_spread(scores: Records, name: str, factor: float = 1.0) -> str:
    return _spread(scores, name, factor) if scores else "-"


def arena_full_table() -> str:
    """Every network and quantizer: drop in points, KL to float x 1000, paired standard error, for the main sources."""
    cells = _latest(records.read(arena.SUITE), ("network", "label", "seed", "count"))
    lines = [
        "| network (float top-1, images) | images | seeds | quantizer | drop | paired SE | KL to float x 1000 |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in _unique(cells, "network"):
        for label in ("real images", "dffg", "noise", "uniform", "sigma-noise"):
            found = [cell for cell in cells if (cell["network"], cell["label"]) == (network, label)]
            for scored in found[0]["scores"] if found else ():
                scores = [cell["scores"][scored] for cell in found]
                error = statistics.mean(score["standard_error"] for score in scores)
                head = f"{network} ({scores[0]['float_top1']:.2f} %, {found[0]['count']})"
                drop, kl = _spread(scores, "drop_points"), _spread(scores, "kl_to_float", 1000)
                lines.append(f"| {head} | {label} | {len(found)} | {scored} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def ablation_table() -> str:
    """KL to float beside that of the defaults, one factor at a time: geometric mean over quantizers; below 1 is better.

    The deviation is over seeds, of the logarithm. The last column is the geometric mean over networks.
    """
    results = _latest(records.read(ablation.SUITE), ("network", "change", "seed"))
    networks = _unique(results, "network")
    lines = [
        f"| factor | set to | {' | '.join(networks)} | all |",
        f"|---|---|{'---|' * (len(networks) + 1)}",
    ]
    for change in ("real images", "noise", *ablation.CHANGES):
        logs = [_log_ratios(results, network, change) for network in networks]
        if any(logs):
            factor = next(r["factor"] for r in results if r["change"] == change)
            cells = [_ratio(values) for values in logs]
            overall = _ratio([statistics.mean(values) for values in logs if values], spread=False)
            whole = overall if all(logs) else f"{overall} ({sum(map(bool, logs))} of {len(logs)})"
            lines.append(f"| {factor} | {change} | {' | '.join(cells)} | {whole} |")
    return "\n".join(lines)


def _log_ratios(results: Records, network: str, change: str) -> list[float]:
    """Per seed: mean log KL over quantizers, minus that of the defaults, averaged over the seeds they share."""
    of_network = [r for r in results if r["network"] == network]
    seeds = {r["seed"] for r in of_network if r["change"] == change}
    defaults = [_log_kl(r) for r in of_network if r["change"] == "defaults" and r["seed"] in seeds]
    return [_log_kl(r) - statistics.mean(defaults) for r in of_network if r["change"] == change and defaults]


def _log_kl(record: dict[str, Any]) -> float:
    return statistics.mean(math.log(value) for value in record["kl"].values())


def _ratio(logs: list[float], *, spread: bool = True) -> str:
    if not logs:
        return "-"
    deviation = f" +- {statistics.stdev(logs):.2f}" if spread and len(logs) > 1 else ""
    return f"{math.exp(statistics.mean(logs)):.2f}{deviation}"


def speed_table() -> str:
    """Seconds for the same number of images, and how many times faster ours is."""
    lines = [
        "| network | dffg, s | ZeroQ 500 iterations, s | times | Sony MCT 500 iterations, s | times |",
        "|---|---|---|---|---|---|",
    ]
    for record in _latest(records.read("speed"), ("network",)):
        cells = [f"{record['zeroq_seconds']:.0f} | {record['zeroq_ratio']:.0f}x"]
        peer = "mct_seconds" in record
        cells.append(f"{record['mct_seconds']:.0f} | {record['mct_ratio']:.0f}x" if peer else "- | -")
        lines.append(f"| {record['network']} | {record['dffg_seconds']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "int8": int8_table,
    "runtime": runtime_table,
    "arena": arena_table,
    "arena_full": arena_full_table,
    "ablation": ablation_table,
    "speed": speed_table,
}


def _latest(results: Records, key: tuple[str, ...]) -> Records:
    """The newest result of every cell."""
    return list({tuple(result[name] for name in key): result for result in results}.values())


def _unique(results: Records, name: str) -> list[Any]:
    return list(dict.fromkeys(result[name] for result in results))


def _spread(cell: Records, name: str, factor: float = 1.0) -> str:
    values = [factor * result[name] for result in cell]
    mean = statistics.mean(values)
    return f"{mean:.2f} +- {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
