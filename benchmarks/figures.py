"""Plots of stored results as SVG, each for a light and a dark page."""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import arena_tables, effort, mixed, records
from benchmarks.networks import OURS, REAL
from benchmarks.rows import mean_and_deviation
from benchmarks.step_tables import steps
from dffg.machine.device import CPU

THEMES = {
    "light": {"text": "#24292f", "grid": "#d0d7de", "ours": "#cf222e", "real": "#1a7f37", "noise": "#6e7781"},
    "dark": {"text": "#c9d1d9", "grid": "#30363d", "ours": "#ff7b72", "real": "#3fb950", "noise": "#8b949e"},
}
# Colors that can be told apart on both pages, also by people who see fewer of them (Okabe and Ito), with a shape each.
RIVALS = {
    "adam-snapshots": ("#e69f00", "s"),
    "zeroq": ("#56b4e9", "v"),
    "dsg": ("#009e73", "^"),
    "dgh": ("#0072b2", "D"),
    "deepinversion": ("#d55e00", "P"),
    "genie": ("#cc79a7", "X"),
    "mct": ("#999999", "*"),
}
# The same method with another number of passes; other settings are other methods and have no place on its curve.
BUDGET_OPTIONS = {"steps", "keep_every", "batch_size", "burn_in"}
# Without a harvest, and without a step.
_OFF_THE_CURVE = ("burn_in 15", " steps 1")
OTHERS_OF_OURS = "other settings of ours"
# Sources that cost nothing: their color, and how their line is drawn.
LINES = {REAL: ("real", "--"), "noise": ("noise", "--"), "sigma-noise": ("noise", ":")}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of one generator: cost on the horizontal axis, top-1 in percent and its deviation over seeds."""

    cost: float
    top1: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One network and quantizer: a curve for every generator, and the sources that cost nothing."""

    network: str
    quantizer: str
    curves: dict[str, list[Point]]
    lines: dict[str, float]


def panels(cost: Callable[[dict[str, Any]], float | None]) -> list[Panel]:
    """Everything a cost plot shows. `cost` of a stored cell is None where it is not known."""
    cells = arena_tables.cells()
    found = [_panel(cells, network, quantizer, cost) for network, quantizer in arena_tables.judged()]
    return [panel for panel in found if panel.curves]


def _panel(
    cells: list[dict[str, Any]], network: str, quantizer: str, cost: Callable[[dict[str, Any]], float | None]
) -> Panel:
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["network"] == network and arena_tables.score_of(cell, quantizer):
            groups.setdefault(cell["label"], []).append(cell)
    curves: dict[str, list[Point]] = {}
    for label, group in groups.items():
        curve = _curve_of(label)
        if curve is not None and (point := _point(group, quantizer, cost)) is not None:
            curves.setdefault(curve, []).append(point)
    return Panel(
        network=network,
        quantizer=quantizer,
        curves={name: sorted(points, key=lambda point: point.cost) for name, points in curves.items()},
        lines={label: _top1(groups[label], quantizer)[0] for label in LINES if label in groups},
    )


def _curve_of(label: str) -> str | None:
    """The curve that a setting is a point of; None where it has no place in the plot."""
    generator, *options = label.split()
    if set(options[::2]) <= BUDGET_OPTIONS and not label.endswith(_OFF_THE_CURVE) and generator in (OURS, *RIVALS):
        return generator
    return OTHERS_OF_OURS if arena_tables.is_ours(label) else None


def _point(group: list[dict[str, Any]], quantizer: str, cost: Callable[[dict[str, Any]], float | None]) -> Point | None:
    costs = [value for value in map(cost, group) if value]
    if not costs:
        return None
    mean, deviation = _top1(group, quantizer)
    return Point(cost=statistics.median(costs), top1=mean, deviation=deviation)


def _top1(group: list[dict[str, Any]], quantizer: str) -> tuple[float, float]:
    scores = [score for cell in group if (score := arena_tables.score_of(cell, quantizer))]
    return mean_and_deviation([score["float_top1"] - score["drop_points"] for score in scores])


def passes_of(cell: dict[str, Any]) -> float | None:
    """Forward and backward passes for every image kept."""
    passes: float = cell["passes_per_image"]
    return passes or None


def seconds_of(cell: dict[str, Any]) -> float | None:
    """Seconds for the whole set, from what a pass costs in the speed suite, where everything ran in turns."""
    each = {record["network"]: record["seconds_per_pass"] for record in records.read("speed")}
    second: float | None = each.get(cell["network"], {}).get(cell["generator"])
    return None if second is None else second * cell["passes_per_image"] * cell["images"] or None


def pareto(theme: str) -> Figure:
    """Accuracy against passes: further up and to the left is better."""
    return _cost_plot(panels(passes_of), theme, "forward and backward passes for every image kept")


def time(theme: str) -> Figure:
    """Accuracy against seconds."""
    return _cost_plot(panels(seconds_of), theme, "seconds for 64 images")


def _cost_plot(shown: list[Panel], theme: str, cost: str) -> Figure:
    colors = THEMES[theme]
    columns = 3
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(11, 3.1 * rows + 0.6), layout="constrained")
    for index, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw(axes, panel, colors)
        if index % columns == 0:
            axes.set_ylabel("top-1, %")
    figure.supxlabel(cost, fontsize=10)
    drawn = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    handles = {handle.get_label(): handle for handle in sorted(drawn, key=lambda handle: handle.get_label() != OURS)}
    figure.legend(
        list(handles.values()), [str(name) for name in handles], loc="outside upper center", ncols=6, frameon=False
    )
    return figure


def _style(name: str, colors: dict[str, str]) -> dict[str, Any]:
    if name == OURS:
        return {"color": colors["ours"], "marker": "o", "linewidth": 2.5, "markersize": 7, "zorder": 3}
    if name == OTHERS_OF_OURS:
        hollow = {"linestyle": "none", "markerfacecolor": "none", "markersize": 7}
        return {"color": colors["ours"], "marker": "o", "zorder": 4, **hollow}
    color, marker = RIVALS[name]
    return {"color": color, "marker": marker, "linewidth": 1.2, "markersize": 5, "zorder": 2}


def _draw(axes: Axes, panel: Panel, colors: dict[str, str]) -> None:
    for name, points in panel.curves.items():
        axes.errorbar(
            [point.cost for point in points],
            [point.top1 for point in points],
            yerr=[point.deviation for point in points],
            label=name,
            elinewidth=0.8,
            **_style(name, colors),
        )
    for name, value in panel.lines.items():
        color, line = LINES[name]
        axes.axhline(value, color=colors[color], linestyle=line, label=name)
    tops = [point.top1 for points in panel.curves.values() for point in points] + list(panel.lines.values())
    best = max(tops)
    # Failures far below would flatten what is compared.
    lowest = max(min(tops), best - 6 * max(best - panel.lines.get(REAL, best), 4.0))
    axes.set_ylim(lowest - 0.05 * (best - lowest), best + 0.08 * (best - lowest))
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{panel.network}, {panel.quantizer}", fontsize=10)
    axes.grid(True, linewidth=0.5)


def _side_by_side(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """A small plot for every title, in a row."""
    figure = Figure(figsize=(4.6 * max(len(titles), 1), 3.6), layout="constrained")
    panes = [figure.add_subplot(1, len(titles), index + 1, title=title) for index, title in enumerate(titles)]
    for axes in panes:
        axes.title.set_fontsize(10)
        axes.grid(True, linewidth=0.5)
    return figure, panes


def frontier(theme: str) -> Figure:
    """Divergence against size, with widths of their own for every layer: further down and to the left is better."""
    colors, shown = THEMES[theme], mixed.frontiers()
    figure, panes = _side_by_side(list(shown))
    for axes, curves in zip(panes, shown.values()):
        for kind, points in curves.items():
            megabytes, means, deviations = zip(*points)
            style: Any = (
                {"color": colors["ours"], "marker": "o", "linewidth": 2}
                if kind == mixed.MIXED
                else {"color": colors["noise"], "marker": "s", "linestyle": "none", "markersize": 8}
            )
            axes.errorbar(megabytes, means, yerr=deviations, label=kind, elinewidth=0.8, **style)
        axes.set_yscale("log")
        axes.legend(frameon=False)
    figure.supxlabel("megabytes of the file", fontsize=10)
    figure.supylabel("KL to the float network, nats", fontsize=10)
    return figure


def effort_curve(theme: str) -> Figure:
    """Accuracy of learned four bits against the minutes that images and learning take."""
    colors, shown = THEMES[theme], effort.curves()
    figure, panes = _side_by_side([f"{network}, {effort.BITS}" for network in shown])
    for axes, curves in zip(panes, shown.values()):
        for source, points in curves.items():
            minutes, means, deviations = zip(*points)
            color = colors["real" if source == REAL else "ours"]
            axes.errorbar(minutes, means, yerr=deviations, color=color, marker="o", label=source, elinewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    figure.supxlabel("minutes, one thread", fontsize=10)
    figure.supylabel("top-1, %", fontsize=10)
    return figure


def roofline(theme: str) -> Figure:
    """Arithmetic per second against arithmetic per byte, below what the machine can do."""
    colors, shown = THEMES[theme], _steps_here()
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    if not shown:
        return figure
    _draw_roof(axes, shown, colors)
    styles = {"floor": (colors["real"], "s"), "fast": (colors["ours"], "o"), "reference": (colors["noise"], "v")}
    labels = {"floor": "convolutions alone", "fast": "our step", "reference": "the formula, by autograd"}
    for name, (color, marker) in styles.items():
        measured = [record for record in shown if name in record["seconds"]]
        axes.scatter(
            [record["flops"] / record["bytes"] for record in measured],
            [record["flops"] / record["seconds"][name] / 1e9 for record in measured],
            color=color,
            marker=marker,
            label=labels[name],
            zorder=3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that convolutions must read and write")
    axes.set_ylabel("10^9 operations per second")
    axes.grid(True, linewidth=0.5)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _steps_here() -> list[dict[str, Any]]:
    """Those of one roof: what the processor has done."""
    return [record for record in steps() if record["device"] == CPU]


def _draw_roof(axes: Axes, shown: list[dict[str, Any]], colors: dict[str, str]) -> None:
    threads = max(record["threads"] for record in shown)
    peaks = [record for record in shown if record["threads"] == threads]
    flops = statistics.median(record["peak_flops"] for record in peaks) / 1e9
    memory = statistics.median(record["peak_bytes"] for record in peaks) / 1e9
    intensities = [record["flops"] / record["bytes"] for record in shown]
    low, high = min(intensities) / 3, max(3 * max(intensities), 2 * flops / memory)
    axes.plot([low, flops / memory, high], [low * memory, flops, flops], color=colors["text"], linewidth=1)
    axes.annotate(f"{threads} threads", (high, flops), ha="right", va="bottom", color=colors["text"])


FIGURES: dict[str, Callable[[str], Figure]] = {
    "pareto": pareto,
    "time": time,
    "frontier": frontier,
    "effort": effort_curve,
    "roofline": roofline,
}
# What each of them shows, in parts.
_SHOWN: dict[str, Callable[[], list[Any]]] = {
    "pareto": lambda: panels(passes_of),
    "time": lambda: panels(seconds_of),
    "frontier": lambda: [mixed.frontiers()],
    "effort": lambda: [effort.curves()],
    "roofline": _steps_here,
}


def data_of(name: str) -> str:
    """Fingerprint of everything that a plot shows."""
    return hashlib.sha256(json.dumps([repr(part) for part in _SHOWN[name]()]).encode()).hexdigest()[:16]


def is_empty(name: str) -> bool:
    """Whether there are no results to show yet."""
    return not any(_SHOWN[name]())


def svg(name: str, theme: str) -> str:
    """A plot as text; the fingerprint of its data is its description, so that a stale one is found without drawing."""
    colors = THEMES[theme]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": colors["text"],
        "axes.labelcolor": colors["text"],
        "axes.edgecolor": colors["grid"],
        "axes.facecolor": "none",
        "grid.color": colors["grid"],
        "xtick.color": colors["text"],
        "ytick.color": colors["text"],
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        stream = io.StringIO()
        figure = FIGURES[name](theme)
        figure.savefig(
            stream, format="svg", transparent=True, metadata={"Date": None, "Description": f"data {data_of(name)}"}
        )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def is_current(name: str, text: str) -> bool:
    """Whether a stored plot shows today's results."""
    return f"data {data_of(name)}" in text
