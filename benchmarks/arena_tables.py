"""Tables of the arena as Markdown: what every generator costs and gives, and whether ours keeps its promises."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import arena, records
from benchmarks.tables import Records, latest, spread, unique

KEY = ("network", "label", "seed", "count")
# At 4 bits with plain ranges the ImageNet networks and keyword spotting collapse with any data; they are judged at 6.
JUDGED = (
    ("cifar10_resnet20", "W4A4 minmax"),
    ("cifar10_resnet20", "W4A4 mse"),
    ("cifar10_resnet56", "W4A4 minmax"),
    ("cifar10_resnet56", "W4A4 mse"),
    ("kws_dscnn", "W6A6 minmax"),
    ("kws_dscnn", "W6A6 mse"),
    ("efficientnet_lite0", "W6A6 minmax"),
    ("efficientnet_lite0", "W6A6 mse"),
    ("mobilenet_v2", "W6A6 mse"),
)
SHORT_ROWS = (
    "real images",
    "noise",
    "uniform",
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
MAIN_SOURCES = ("real images", "dffg", "noise", "uniform", "sigma-noise")
# Real data that keeps less than this share of float accuracy makes a comparison meaningless.
LEAST_SHARE_OF_FLOAT = 0.5


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One generator on one network through one quantizer, over seeds; points of top-1.

    `seed_error` is the standard error of the mean over seeds, `image_error` that of a drop over the evaluation images.
    """

    label: str
    passes: float
    drop: float
    seed_error: float
    image_error: float
    float_top1: float
    seeds: int


def cells() -> Records:
    """The newest result of every cell; those measured with defaults that are no longer ours are not shown."""
    return latest([record for record in records.read(arena.SUITE) if _is_current(record)], KEY)


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
    shown = [(network, scored) for network, scored in JUDGED if any(cell["network"] == network for cell in stored)]
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
        seed_error=statistics.stdev(drops) / math.sqrt(len(drops)) if len(drops) > 1 else 0.0,
        image_error=statistics.mean(score["standard_error"] for score in scores),
        float_top1=scores[0]["float_top1"],
        seeds=len(drops),
    )


def claims_table() -> str:
    """Ours at its defaults beside real images and noise: points gained, with standard errors, and what follows."""
    lines = [
        "| network, quantizer | ours over real images | level with real | ours over noise | 5 points over noise |",
        "|---|---|---|---|---|",
    ]
    for network, scored in JUDGED:
        found = summaries(network, scored)
        if {"dffg", "real images", "noise"} <= found.keys():
            ours, real, noise = found["dffg"], found["real images"], found["noise"]
            over_real, over_noise = real.drop - ours.drop, noise.drop - ours.drop
            level = over_real >= -ours.image_error
            verdict = ("yes" if level else "no") if _means_something(real) else "no claim, real images fail too"
            gain = "yes" if over_noise >= 5 else "no"
            lines.append(
                f"| {network} {scored} | {_gain(over_real, ours, real)} | {verdict} "
                f"| {_gain(over_noise, ours, noise)} | {gain} |"
            )
    return "\n".join(lines)


def _means_something(real: Summary) -> bool:
    return real.float_top1 - real.drop >= LEAST_SHARE_OF_FLOAT * real.float_top1


def _gain(points: float, ours: Summary, other: Summary) -> str:
    seeds = math.hypot(ours.seed_error, other.seed_error)
    return f"{points:+.2f} (SE {seeds:.2f} over seeds, {ours.image_error:.2f} over images)"


def pareto_table() -> str:
    """Rivals that no setting of ours beats: no more passes than theirs, and as accurate within a standard error."""
    lines = [
        "| network, quantizer | rivals further up and to the left of ours (passes, points better than ours there) |",
        "|---|---|",
    ]
    for network, scored in JUDGED:
        found = summaries(network, scored)
        ours = [one for one in found.values() if is_ours(one.label)]
        if ours:
            ahead = [text for one in found.values() if is_rival(one) and (text := _lead(one, ours))]
            lines.append(f"| {network} {scored} | {'; '.join(ahead) or 'none'} |")
    return "\n".join(lines)


def is_ours(label: str) -> bool:
    """Our generator, with any number of passes but with its own variability."""
    return label.split()[0] == "dffg" and "variability" not in label


def is_rival(one: Summary) -> bool:
    """Someone else's way to make images from the network; settings of ours and what costs nothing are none."""
    return one.passes > 0 and not one.label.startswith("dffg") and "fgsm" not in one.label


def _lead(rival: Summary, ours: list[Summary]) -> str:
    """How far a rival is ahead of our best at its number of passes or fewer; empty where it is not."""
    affordable = [one for one in ours if one.passes <= 1.05 * rival.passes]
    best = min(affordable, key=lambda one: one.drop, default=None)
    if best is None:
        return f"{rival.label} ({rival.passes:.4g}, below our fewest)"
    lead = best.drop - rival.drop
    error = math.hypot(best.image_error, best.seed_error, rival.seed_error)
    return f"{rival.label} ({rival.passes:.4g}, {lead:+.2f} with SE {error:.2f})" if lead > error else ""
