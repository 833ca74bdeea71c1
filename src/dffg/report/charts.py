"""Charts as SVG that is put into a page and takes colors and letters from there. No display is needed."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

# What matplotlib is told to draw in, and what the page's style sheet knows it as.
_INK, _MUTED, _LINE, _ACCENT, _WARN = (f"#00000{digit}" for digit in range(1, 6))
_SERIES = tuple(f"#0001{digit:02}" for digit in range(6))
_NAMES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _WARN: "warn"}
_VARIABLES = _NAMES | {color: f"series-{index}" for index, color in enumerate(_SERIES)}
_MARKERS = "osD^vP"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dffg",
    # A layer may be called $x$.
    "text.parse_math": False,
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}
_POINTS_PER_INCH = 72
WORST = 3
# Beyond this ratio of the largest to the smallest, a straight axis shows only the largest.
_STRAIGHT = 30

Losses = Sequence[Sequence[float | None]]
SqnrByLayer = dict[str, float | None]
RangeByLayer = dict[str, tuple[float, float] | None]


def loss_chart(losses: Losses, burn_in: int) -> Markup | None:
    """Loss of every pass, one line for every chain; passes whose images are kept are marked. None without losses."""
    chains = {chain: _numbers(values) for chain, values in enumerate(losses)}
    values = [value for points in chains.values() for _, value in points]
    if max(map(len, chains.values()), default=0) < 2:
        return None

    def draw(axes: Axes) -> None:
        last = max(number for points in chains.values() for number, _ in points)
        axes.axvspan(burn_in + 1, last, color=_LINE, alpha=0.45, linewidth=0)
        for chain, points in chains.items():
            axes.plot(*zip(*points), color=_ACCENT, linewidth=1.4, alpha=0.75, gid=f"chain-{chain}")
        if min(values) > 0 and max(values) > _STRAIGHT * min(values):
            axes.set_yscale("log")
            _write_numbers(axes)
        else:
            axes.set_ylim(bottom=min(0.0, *values))
        axes.set_xlim(1, last)
        axes.set_xlabel("pass")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(_whole_numbers())

    first, end = values[0], values[-1]
    label = f"Loss of every pass, {len(chains)} chains, from {first:.3g} at the start of the first to {end:.3g}"
    return _chart("loss", label, draw, {f"chain-{chain}": f"chain {chain + 1}" for chain in chains})


def sqnr_chart(layers: SqnrByLayer) -> Markup | None:
    """A bar for every layer in order of execution, the noisiest in another color. None where nothing is known."""
    known = [value for value in layers.values() if value is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        _draw_bars(axes, {name: (0.0, value or 0.0) for name, value in layers.items()}, _noisiest(layers))
        axes.set_ylabel("SQNR, dB")

    titles = {f"layer-{index}": f"{name}: {_decibels(value)}" for index, (name, value) in enumerate(layers.items())}
    label = f"Signal to noise ratio of {len(layers)} layers, {min(known):.1f} to {max(known):.1f} dB"
    return _chart("sqnr", label, draw, titles)


def range_chart(ranges: RangeByLayer, sqnr: SqnrByLayer) -> Markup | None:
    """A bar over the input range of every layer, in the places and colors of `sqnr_chart`. None without ranges."""
    known = [found for found in ranges.values() if found is not None]
    if not known:
        return None
    lowest, highest = min(low for low, _ in known), max(high for _, high in known)

    def draw(axes: Axes) -> None:
        _draw_bars(axes, {name: found or (0.0, 0.0) for name, found in ranges.items()}, _noisiest(sqnr))
        axes.set_ylabel("input range")
        sizes = [max(-low, high) for low, high in known]
        if max(sizes) > _STRAIGHT * min(sizes):
            # Straight up to a power of ten, which is where there are labels.
            axes.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(max(sizes) / _STRAIGHT)))
            _write_numbers(axes)

    titles = {f"layer-{index}": f"{name}: {_interval(found)}" for index, (name, found) in enumerate(ranges.items())}
    return _chart("range", f"Input ranges of {len(ranges)} layers, within {lowest:.3g} to {highest:.3g}", draw, titles)


def comparison_chart(runs: dict[str, SqnrByLayer]) -> Markup | None:
    """Signal to noise ratio of every layer, a line for every run; layers of one name stand above each other."""
    names = list(dict.fromkeys(name for layers in runs.values() for name in layers))
    position = {name: index + 1 for index, name in enumerate(names)}
    if all(value is None for layers in runs.values() for value in layers.values()):
        return None

    def draw(axes: Axes) -> None:
        for index, (run, layers) in enumerate(runs.items()):
            turn = index % len(_SERIES)
            known = {position[name]: value for name, value in layers.items() if value is not None}
            # An invisible first letter, since labels that begin with _ are not shown.
            style: Any = {"color": _SERIES[turn], "marker": _MARKERS[turn], "label": f"\u200b{run}"}
            axes.plot(list(known), list(known.values()), markersize=4, linewidth=1.4, **style)
        axes.set_xlim(0.3, len(names) + 0.7)
        axes.set_xlabel("layer, in order of execution")
        axes.set_ylabel("SQNR, dB")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.figure.legend(loc="outside upper left")

    label = f"Signal to noise ratio of every layer in {len(runs)} runs"
    return _chart("comparison", label, draw, {}, width=560, height=240 + 17 * len(runs))


def _noisiest(layers: SqnrByLayer) -> list[str]:
    known = {name: value for name, value in layers.items() if value is not None}
    return sorted(known, key=known.__getitem__)[:WORST]


def _draw_bars(axes: Axes, spans: dict[str, tuple[float, float]], marked: Collection[str]) -> None:
    """A bar for every layer in order of execution, from one value to another."""
    heights, starts = [end - start for start, end in spans.values()], [start for start, _ in spans.values()]
    colors = [_WARN if name in marked else _ACCENT for name in spans]
    bars = axes.bar(range(1, len(spans) + 1), heights, bottom=starts, color=colors, width=0.72)
    for index, bar in enumerate(bars):
        bar.set_gid(f"layer-{index}")
    axes.set_xlim(0.3, len(spans) + 0.7)
    axes.set_xlabel("layer, in order of execution")
    axes.xaxis.set_major_locator(_whole_numbers())


def _write_numbers(axes: Axes) -> None:
    """On a logarithmic axis, where matplotlib's own labels are formulas, which are not drawn here."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")


def _numbers(losses: Sequence[float | None]) -> list[tuple[int, float]]:
    """Number of the pass, from 1, and its loss."""
    return [(index + 1, loss) for index, loss in enumerate(losses) if loss is not None]


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _decibels(value: float | None) -> str:
    return "no figure" if value is None else f"{value:.1f} dB"


def _interval(found: tuple[float, float] | None) -> str:
    return "no range" if found is None else f"{found[0]:.3g} to {found[1]:.3g}"


def _chart(
    name: str,
    label: str,
    draw: Callable[[Axes], None],
    titles: dict[str, str],
    *,
    width: float = 400,
    height: float = 220,
) -> Markup:
    """Draw on axes of `width` x `height` units; `titles` names what the reader points at."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
        draw(figure.add_subplot())
        return Markup(_for_page(_saved(figure), name, label, titles))


def _saved(figure: Figure) -> str:
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return stream.getvalue()


def _for_page(text: str, name: str, label: str, titles: dict[str, str]) -> str:
    """One `svg` element: themed, with names of its own, described, and as wide as its place."""
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for gid, title in titles.items():
        group = f'<g id="{name}-{gid}">'
        text = text.replace(group, f"{group}<title>{escape(title)}</title>", 1)
    viewport = re.search(r'viewBox="[^"]*"', text)
    assert viewport is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {viewport[0]}'
    return re.sub(r"<svg[^>]*>", lambda _: f'{head} role="img" aria-label="{escape(label)}">', text, count=1)
