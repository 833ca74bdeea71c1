"""Tables of the arena as Markdown: what every generator costs and gives, and whether ours keeps its promises."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import arena, records
from benchmarks.networks import REAL
from benchmarks.tables import Records, latest, spread, unique

KEY = ("network", "label", "seed", "count")
# At 4 bits with plain ranges the ImageNet networks and keyword spotting collapse with any data, and are judged at 6.
JUDGED = (
    ("cifar10_resnet20", "W4A4 minmax"),
    ("cifar10_resnet20", "W4A4 mse"),
    ("cifar10_resnet56", "W4A4 minmax"),
    ("cifar10_resnet56", "W4A4 mse"),
    ("kws_dscnn", "W6A6 minmax"),
    ("kws_dscnn", "W6A6 mse"),
    ("efficientnet_lite0", "W6A6 minmax"),
    ("efficientnet_lite0", "W6A6 mse"),
    ("mobilenet_v2", "W6A6 minmax"),
    ("mobilenet_v2", "W6A6 mse"),
)
# What other networks, from the hub, are shown with.
JUDGED_ELSEWHERE = ("W6A6 mse", "W4A4 mse")
SHORT_ROWS = (
    REAL,
    "noise",
    "uniform",
    "sigma-noise",
    "dffg",
    "adam-snapshots",
    "zeroq steps 16",
    "zeroq",
    "dsg batch_size 32",
    "dgh steps 16",
    "dgh",
    "deepinversion steps 16",
    "genie steps 16 batch_size 64",
    "mct",
)
CONTESTANTS = {one.label: one for suite in arena.SUITES.values() for one in suite.contestants}
MAIN_SOURCES = (REAL, "dffg", "noise", "uniform", "sigma-noise")
# Real data that keeps less than this share of float accuracy makes a comparison meaningless.
LEAST_SHARE_OF_FLOAT = 0.5
MARGIN_OVER_NOISE = 5.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One setting on one network through one quantizer, over seeds; points of top-1.

    `seed_error` is the standard error of the mean over seeds, NaN for one seed; `image_error` that of a drop over the
    evaluation images.
    """

    label: str
    passes: float
    drop: float
    seed_error: float
    image_error: float
    float_top1: float
    seeds: int


def error_between(one: Summary, other: Summary) -> float:
    """Standard error of a difference of two drops: over the seeds of both, and over the images that they share."""
    over_seeds = [error for error in (one.seed_error, other.seed_error) if not math.isnan(error)]
    return math.hypot(*over_seeds, max(one.image_error, other.image_error))


def cells() -> Records:
    """The newest result of every cell, on as many evaluation images as any cell of the network has.

    What was measured with defaults that are no longer ours is not shown.
    """
    stored = [record for record in records.read(arena.SUITE) if _is_current(record)]
    counts = {record["network"]: 0 for record in stored}
    for record in stored:
        counts[record["network"]] = max(counts[record["network"]], record["count"])
    return latest([record for record in stored if record["count"] == counts[record["network"]]], KEY)


def judged() -> list[tuple[str, str]]:
    """Network and quantizer of every column."""
    known = {network for network, _ in JUDGED}
    others = [network for network in unique(cells(), "network") if network not in known]
    return [*JUDGED, *((network, scored) for network in others for scored in JUDGED_ELSEWHERE)]


def _is_current(record: dict[str, Any]) -> bool:
    contestant = CONTESTANTS.get(record["label"])
    return contestant is not None and record["config"] == arena.config_of(contestant, record["seed"])


def arena_table() -> str:
    """Top-1 drop in points where the data matters most, one row per setting."""
    return _drops(cells())


def arena_short_table() -> str:
    """The rows that the README shows."""
    return _drops([cell for cell in cells() if cell["label"] in SHORT_ROWS])


def _drops(stored: Records) -> str:
    shown = [(network, scored) for network, scored in judged() if any(cell["network"] == network for cell in stored)]
    heads = [f"{network} {scored}" for network, scored in shown]
    lines = [f"| images | passes | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for label in _labels(stored):
        of_label = [cell for cell in stored if cell["label"] == label]
        columns = [_drop(of_label, network, scored) for network, scored in shown]
        if any(column != "-" for column in columns):
            lines.append(f"| {label} | {of_label[0]['passes_per_image']:.4g} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _labels(stored: Records) -> list[str]:
    """In the order of the full suite."""
    known = unique(stored, "label")
    return [one.label for one in arena.SUITES["full"].contestants if one.label in known]


def _drop(of_label: Records, network: str, scored: str) -> str:
    scores = _scores(of_label, network, scored)
    return spread(scores, "drop_points") if scores else "-"


def _scores(stored: Records, network: str, scored: str) -> Records:
    """Scores of one quantizer; noise with sigma ranges has its own ranges in every column."""
    bits = scored.split()[0]
    return [
        cell["scores"].get(scored) or cell["scores"][f"{bits} sigma"]
        for cell in stored
        if cell["network"] == network and (scored in cell["scores"] or f"{bits} sigma" in cell["scores"])
    ]


def arena_full_table() -> str:
    """Every network and quantizer: drop in points, KL to float x 1000, paired standard error, for the main sources."""
    stored = cells()
    lines = [
        "| network (float top-1, images) | images | seeds | quantizer | drop | paired SE | KL to float x 1000 |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in unique(stored, "network"):
        for label in MAIN_SOURCES:
            found = [cell for cell in stored if (cell["network"], cell["label"]) == (network, label)]
            for scored in found[0]["scores"] if found else ():
                scores = [cell["scores"][scored] for cell in found]
                error = statistics.mean(score["standard_error"] for score in scores)
                head = f"{network} ({scores[0]['float_top1']:.2f} %, {found[0]['count']})"
                drop, kl = spread(scores, "drop_points"), spread(scores, "kl_to_float", 1000)
                lines.append(f"| {head} | {label} | {len(found)} | {scored} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def summaries(network: str, scored: str) -> dict[str, Summary]:
    """Every setting that was scored on a network with a quantizer, by label."""
    stored = [cell for cell in cells() if cell["network"] == network and scored in cell["scores"]]
    return {label: _summary(label, [c for c in stored if c["label"] == label], scored) for label in _labels(stored)}


def _summary(label: str, of_label: Records, scored: str) -> Summary:
    scores = [cell["scores"][scored] for cell in of_label]
    drops = [score["drop_points"] for score in scores]
    return Summary(
        label=label,
        passes=of_label[0]["passes_per_image"],
        drop=statistics.mean(drops),
        seed_error=statistics.stdev(drops) / math.sqrt(len(drops)) if len(drops) > 1 else math.nan,
        image_error=statistics.mean(score["standard_error"] for score in scores),
        float_top1=scores[0]["float_top1"],
        seeds=len(drops),
    )


def claims_table() -> str:
    """Ours at its defaults beside real images and noise: points gained, with the standard error, and what follows."""
    lines = [
        "| network, quantizer | seeds | ours over real images | beside real images | ours over noise | 5 over noise |",
        "|---|---|---|---|---|---|",
    ]
    for network, scored in judged():
        found = summaries(network, scored)
        if {"dffg", REAL, "noise"} <= found.keys():
            ours, real, noise = found["dffg"], found[REAL], found["noise"]
            lines.append(
                f"| {network} {scored} | {ours.seeds} | {_gain(ours, real)} | {_beside(ours, real)} "
                f"| {_gain(ours, noise)} | {_exceeds(ours, noise, MARGIN_OVER_NOISE)} |"
            )
    return "\n".join(lines)


def _gain(ours: Summary, other: Summary) -> str:
    return f"{other.drop - ours.drop:+.2f} +- {error_between(ours, other):.2f}"


def _beside(ours: Summary, real: Summary) -> str:
    if real.float_top1 - real.drop < LEAST_SHARE_OF_FLOAT * real.float_top1:
        return "no claim, real images fail too"
    gain, error = real.drop - ours.drop, error_between(ours, real)
    return "better" if gain > error else "level" if gain >= -error else "worse"


def _exceeds(ours: Summary, other: Summary, margin: float) -> str:
    gain, error = other.drop - ours.drop, error_between(ours, other)
    return "yes" if gain - error >= margin else "within the error" if gain + error >= margin else "no"


def pareto_table() -> str:
    """Who beats our defaults by more than the standard error, with as many passes or fewer, and with more."""
    lines = [
        "| network, quantizer | with as many passes or fewer | with more passes |",
        "|---|---|---|",
    ]
    for network, scored in judged():
        found = {**summaries(network, f"{scored.split()[0]} sigma"), **summaries(network, scored)}
        if "dffg" in found:
            ours = found["dffg"]
            ahead = [one for one in found.values() if is_rival(one) and ours.drop - one.drop > error_between(ours, one)]
            cheap = "; ".join(_lead(one, ours) for one in ahead if one.passes <= ours.passes)
            dear = "; ".join(_lead(one, ours) for one in ahead if one.passes > ours.passes)
            lines.append(f"| {network} {scored} | {cheap or 'none'} | {dear or 'none'} |")
    return "\n".join(lines)


def is_rival(one: Summary) -> bool:
    """Another way to get images without data."""
    return one.label.split()[0] != "dffg" and one.label != REAL


def _lead(rival: Summary, ours: Summary) -> str:
    return f"{rival.label} ({rival.passes:.4g}: {ours.drop - rival.drop:+.2f} +- {error_between(ours, rival):.2f})"
