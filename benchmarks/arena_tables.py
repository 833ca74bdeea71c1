"""Tables of the arena as Markdown: what every generator costs and gives, and whether ours keeps its promises."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import arena, claims, records
from benchmarks.claims import Summary, gain, verdict
from benchmarks.networks import OURS, REAL
from benchmarks.rows import Records, current, headed, spread, unique

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
# With plain ranges real images keep most of the accuracy there; settings that are not a generator's own are not scored.
ALSO_CLAIMED = tuple(
    (network, f"W8A6 {ranges}") for network in ("efficientnet_lite0", "mobilenet_v2") for ranges in arena.RANGES
)
WITHOUT_VIEWS = f"{OURS} variability none"
# What ours promises to be much faster than, at their own number of passes.
SLOW_RIVALS = ("zeroq", arena.PEER)
# Budgets that are compared, in passes for every image, and how far from them still counts.
EQUAL_PASSES = (4, 16, 64)
NEAR = 0.1
# What other networks, from the hub, are shown with.
JUDGED_ELSEWHERE = ("W6A6 mse", "W4A4 mse")
SHORT_ROWS = (
    REAL,
    "noise",
    "uniform",
    "sigma-noise",
    OURS,
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
MAIN_SOURCES = (REAL, OURS, "noise", "uniform", "sigma-noise")


def cells() -> Records:
    """The newest result of every cell with the usual number of images."""
    return [cell for cell in all_cells() if cell["images"] == arena.COUNT]


def all_cells() -> Records:
    """The newest result of every cell, on as many evaluation images as any cell of the network has.

    What was measured with defaults that are no longer ours is not shown.
    """
    stored = current(arena.SUITE, KEY, _settings)
    networks = unique(stored, "network")
    most = {network: max(cell["count"] for cell in stored if cell["network"] == network) for network in networks}
    return [cell for cell in stored if cell["count"] == most[cell["network"]]]


def judged() -> list[tuple[str, str]]:
    """Network and quantizer of every column."""
    known = {network for network, _ in JUDGED}
    others = [network for network in unique(cells(), "network") if network not in known]
    return [*JUDGED, *((network, scored) for network in others for scored in JUDGED_ELSEWHERE)]


def _settings(row: dict[str, Any]) -> dict[str, Any] | None:
    contestant = CONTESTANTS.get(row["label"])
    return None if contestant is None else arena.config_of(contestant, row["seed"])


def arena_table() -> str:
    """Top-1 drop in points where the data matters most, one row per setting."""
    return _drops([cells()])


def arena_short_table() -> str:
    """The rows that the README shows."""
    return _drops([[cell for cell in cells() if cell["label"] in SHORT_ROWS]])


def equal_passes_table() -> str:
    """What gets about as many passes for every image stands together."""
    return _drops([[c for c in cells() if _is_near(c["passes_per_image"], budget)] for budget in EQUAL_PASSES])


def counted_table() -> str:
    """Drop by the number of images, where others than the usual one were measured."""
    counted = [cell for cell in all_cells() if _uncounted(cell) in (REAL, "noise", OURS)]
    others = {cell["network"] for cell in counted if cell["images"] != arena.COUNT}
    shown = [column for column in judged() if column[0] in others]
    if not shown:
        return "Not measured yet: `python -m benchmarks run --suite full` does."
    heads = " | ".join(f"{network} {scored}" for network, scored in shown)
    lines = [f"| images | number | passes | {heads} |", f"|---|---|---|{'---|' * len(shown)}"]
    for source in (REAL, "noise", OURS):
        for count in sorted(unique(counted, "images")):
            found = [cell for cell in counted if (_uncounted(cell), cell["images"]) == (source, count)]
            if found:
                drops = " | ".join(_drop(found, network, scored) for network, scored in shown)
                lines.append(f"| {source} | {count} | {found[0]['passes_per_image']:.4g} | {drops} |")
    return "\n".join(lines)


def _uncounted(cell: dict[str, Any]) -> str:
    """The label without a number of images of its own."""
    return str(cell["label"]).partition(" count ")[0]


def _is_near(passes: float, budget: int) -> bool:
    return abs(passes / budget - 1) <= NEAR


def _drops(groups: list[Records]) -> str:
    stored = [cell for group in groups for cell in group]
    shown = [(network, scored) for network, scored in judged() if any(cell["network"] == network for cell in stored)]
    heads = [f"{network} {scored}" for network, scored in shown]
    lines = [f"| images | passes | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for label in (label for group in groups for label in _labels(group)):
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
    return [found for cell in stored if cell["network"] == network and (found := score_of(cell, scored))]


def score_of(cell: dict[str, Any], scored: str) -> dict[str, float] | None:
    """What a cell gives with a quantizer; noise with sigma ranges has its own ranges with every one of its widths."""
    scores: dict[str, dict[str, float]] = cell["scores"]
    return scores.get(scored) or scores.get(f"{scored.split()[0]} sigma")


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
                head = headed(network, {**found[0], **scores[0]})
                drop, kl = spread(scores, "drop_points"), spread(scores, "kl_to_float", 1000)
                lines.append(f"| {head} | {label} | {len(found)} | {scored} | {drop} | {error:.2f} | {kl} |")
    return "\n".join(lines)


def summaries(network: str, scored: str) -> dict[str, Summary]:
    """Every setting that was scored on a network with a quantizer, by label."""
    stored = [cell for cell in cells() if cell["network"] == network and scored in cell["scores"]]
    by_label = {label: [cell for cell in stored if cell["label"] == label] for label in _labels(stored)}
    return {
        label: claims.summary(label, [cell["scores"][scored] for cell in found], found[0]["passes_per_image"])
        for label, found in by_label.items()
    }


def claims_table() -> str:
    """Ours at its defaults beside real images and noise."""
    lines = [claims.HEAD]
    for network, scored in (*judged(), *ALSO_CLAIMED):
        found = summaries(network, scored)
        if {OURS, REAL, "noise"} <= found.keys():
            lines.append(claims.row(f"{network} {scored}", found[OURS], found[REAL], found["noise"]))
    return "\n".join(lines)


def faster_table() -> str:
    """Slow rivals with their own settings: how many times the seconds of ours, and who has the better accuracy."""
    speed = {record["network"]: record["times_ours"] for record in records.read("speed")}
    lines = [
        "| network, quantizer | rival (seeds) | times our seconds | our drop | its drop | ours beside it |",
        "|---|---|---|---|---|---|",
    ]
    for network, scored in judged():
        found = summaries(network, scored)
        for rival in SLOW_RIVALS:
            if OURS in found and rival in found and rival in speed.get(network, {}):
                ours, slow = found[OURS], found[rival]
                lines.append(
                    f"| {network} {scored} | {rival} ({slow.seeds}) | {speed[network][rival]:.0f} "
                    f"| {ours.drop:.2f} | {slow.drop:.2f} | {verdict(ours, slow)} |"
                )
    return "\n".join(lines)


def views_table() -> str:
    """Our defaults, which look at random views, beside the same without: points gained and the ratio of divergences."""
    lines = [
        "| network, quantizer | seeds | views over none | views beside none | KL, of that of none |",
        "|---|---|---|---|---|",
    ]
    for network, scored in judged():
        found = summaries(network, scored)
        if {OURS, WITHOUT_VIEWS} <= found.keys() and found[OURS].drop != found[WITHOUT_VIEWS].drop:
            ours, none = found[OURS], found[WITHOUT_VIEWS]
            lines.append(
                f"| {network} {scored} | {ours.seeds} | {gain(ours, none)} | {verdict(ours, none)} "
                f"| {ours.kl / none.kl:.2f} |"
            )
    return "\n".join(lines)


def pareto_table() -> str:
    """Who beats our defaults by more than the standard error: rivals, by their passes, and other settings of ours."""
    lines = [
        "| network, quantizer | with as many passes or fewer | with more passes | other settings of ours |",
        "|---|---|---|---|",
    ]
    for network, scored in judged():
        found = {**summaries(network, f"{scored.split()[0]} sigma"), **summaries(network, scored)}
        if OURS in found:
            ours = found[OURS]
            ahead = [one for one in found.values() if one.label != REAL and verdict(one, ours) == "better"]
            rivals = [one for one in ahead if not is_ours(one.label)]
            groups = (
                [one for one in rivals if one.passes <= ours.passes],
                [one for one in rivals if one.passes > ours.passes],
                [one for one in ahead if is_ours(one.label)],
            )
            leads = ["; ".join(_lead(one, ours) for one in group) or "none" for group in groups]
            lines.append(f"| {network} {scored} | {' | '.join(leads)} |")
    return "\n".join(lines)


def is_ours(label: str) -> bool:
    """Whether it is our method, with whatever settings; the attacks are settings of ours with names of their own."""
    return label.split()[0] == OURS or label.endswith("-fgsm")


def _lead(ahead: Summary, ours: Summary) -> str:
    return f"{ahead.label} ({ahead.passes:.4g}: {gain(ahead, ours)})"
