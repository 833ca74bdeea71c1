from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dffg.report.charts import comparison_chart, loss_chart, range_chart, sqnr_chart
from tests.report.pages import HOSTILE

LAYERS = {"first": 40.0, "second": 20.0, "third": None, "fourth": -5.0, "fifth": 30.0, "sixth": 10.0}
SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    root = ElementTree.fromstring(chart)
    assert root.tag == f"{SVG}svg"
    return root


def points(root, gid):
    """Corners of the path in a group, in units of the chart; y grows downward."""
    (group,) = [entry for entry in root.iter() if entry.get("id") == gid]
    path = group.find(f"{SVG}path").get("d")
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_every_chain_is_a_line_through_its_losses():
    root = parsed(loss_chart([[8.0, 4.0, 2.0], [6.0, 6.0, 0.0]], burn_in=2))
    first, second = points(root, "loss-chain-0"), points(root, "loss-chain-1")
    assert [x for x, _ in first] == [x for x, _ in second]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.01)
    unit = (first[1][1] - first[0][1]) / 4
    assert unit > 0
    heights = [(first[2][1] - y) / unit + 2 for _, y in (*first, *second)]
    assert heights == pytest.approx([8, 4, 2, 6, 6, 0], abs=0.01)


def test_passes_whose_images_are_kept_are_shaded():
    root = parsed(loss_chart([[8.0, 4.0, 2.0, 1.0]], burn_in=2))
    line = points(root, "loss-chain-0")
    shade = [
        sorted({x for x, _ in points(root, entry.get("id"))})
        for entry in root.iter(f"{SVG}g")
        if (path := entry.find(f"{SVG}path")) is not None and "opacity: 0.45" in path.get("style", "")
    ]
    assert shade == [pytest.approx([line[2][0], line[3][0]], abs=0.01)]


def test_numbers_on_a_logarithmic_axis_are_numbers():
    texts = [text.text for text in parsed(loss_chart([[5.0, 0.5, 0.002]], burn_in=2)).iter(f"{SVG}text")]
    assert {"0.01", "0.1", "1"} <= set(texts)
    assert not [text for text in texts if "$" in text]


def test_a_wide_range_of_losses_has_a_logarithmic_axis():
    line = points(parsed(loss_chart([[1000.0, 100.0, 10.0]], burn_in=0)), "loss-chain-0")
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.01)


@pytest.mark.parametrize("losses", [(), ((None,), (None,)), ((1.0,), (1.0,)), ((None, None),)])
def test_without_losses_to_join_there_is_no_chart(losses):
    assert loss_chart(losses, burn_in=0) is None


def test_every_layer_is_a_bar_as_high_as_its_ratio():
    root = parsed(sqnr_chart(LAYERS))
    corners = {name: points(root, f"sqnr-layer-{index}") for index, name in enumerate(LAYERS)}
    heights = {name: max(y for _, y in bar) - min(y for _, y in bar) for name, bar in corners.items()}
    scale = heights["first"] / 40
    assert heights == {name: pytest.approx(abs(value or 0) * scale, abs=0.01) for name, value in LAYERS.items()}
    floor = max(y for _, y in corners["first"])
    assert min(y for _, y in corners["fourth"]) == pytest.approx(floor, abs=0.01)
    lefts = [min(x for x, _ in bar) for bar in corners.values()]
    assert lefts == sorted(lefts)


def test_the_three_noisiest_layers_stand_out():
    text = str(sqnr_chart(LAYERS))
    warned = re.findall(r'id="sqnr-layer-(\d)"(?:(?!</g>).)*var\(--warn\)', text, flags=re.DOTALL)
    assert [list(LAYERS)[int(index)] for index in warned] == ["second", "fourth", "sixth"]


def test_a_bar_says_its_layer_and_figure():
    root = parsed(sqnr_chart(LAYERS))
    titles = [entry.text for entry in root.iter(f"{SVG}title")]
    assert titles[:3] == ["first: 40.0 dB", "second: 20.0 dB", "third: no figure"]
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Signal to noise ratio of 6 layers, -5.0 to 40.0 dB"


RANGES = {"first": (0.0, 4.0), "second": (-2.0, 6.0), "third": None, "fourth": (-1.0, 1.0)}


def test_a_bar_covers_the_input_range_of_its_layer():
    root = parsed(range_chart(RANGES, LAYERS))
    edges = {
        name: (max(y for _, y in bar), min(y for _, y in bar))
        for index, name in enumerate(RANGES)
        for bar in [points(root, f"range-layer-{index}")]
    }
    zero, unit = edges["first"][0], (edges["first"][0] - edges["first"][1]) / 4
    values = {name: tuple((zero - y) / unit for y in ends) for name, ends in edges.items()}
    assert values == {name: pytest.approx(found or (0, 0), abs=0.01) for name, found in RANGES.items()}
    assert root.get("aria-label") == "Input ranges of 4 layers, within -2 to 6"
    titles = [entry.text for entry in root.iter(f"{SVG}title")]
    assert titles == ["first: 0 to 4", "second: -2 to 6", "third: no range", "fourth: -1 to 1"]


def test_the_ranges_of_the_noisiest_layers_stand_out():
    text = str(range_chart(dict.fromkeys(LAYERS, (0.0, 1.0)), LAYERS))
    warned = re.findall(r'id="range-layer-(\d)"(?:(?!</g>).)*var\(--warn\)', text, flags=re.DOTALL)
    assert [list(LAYERS)[int(index)] for index in warned] == ["second", "fourth", "sixth"]


def test_ranges_of_very_different_widths_can_all_be_seen():
    root = parsed(range_chart({"wide": (-1000.0, 1000.0), "narrow": (0.0, 10.0)}, {}))
    wide, narrow = ([y for _, y in points(root, f"range-layer-{index}")] for index in range(2))
    assert max(narrow) - min(narrow) > 0.03 * (max(wide) - min(wide))
    assert not [text.text for text in root.iter(f"{SVG}text") if "$" in text.text]


def test_without_figures_there_is_no_bar():
    assert sqnr_chart({"a": None}) is None
    assert range_chart({"a": None}, {"a": 1.0}) is None
    assert comparison_chart({"run": {"a": None}, "other": {}}) is None


def test_runs_are_lines_with_layers_of_one_name_above_each_other():
    runs = {"one": {"a": 30.0, "b": 20.0, "c": 10.0}, "_two": {"a": 25.0, "c": None, "d": 5.0}}
    chart = comparison_chart(runs)
    root = parsed(chart)
    lines = {}
    for entry in root.iter(f"{SVG}g"):
        path = entry.find(f"{SVG}path")
        series = re.search(
            r"fill: none; stroke: var\(--series-(\d)\)", path.get("style", "") if path is not None else ""
        )
        if series:
            lines.setdefault(int(series[1]), points(root, entry.get("id")))
    assert [len(lines[0]), len(lines[1])] == [3, 2]
    step = lines[0][1][0] - lines[0][0][0]
    assert lines[1][0][0] == lines[0][0][0]
    assert lines[1][1][0] - lines[1][0][0] == pytest.approx(3 * step, abs=0.01)
    assert "_two" in chart


@pytest.mark.parametrize(
    "chart",
    [
        loss_chart([[2.0, 1.0]], 0),
        sqnr_chart({HOSTILE: 1.0}),
        range_chart({HOSTILE: (0.0, 1.0)}, {HOSTILE: 1.0}),
        comparison_chart({HOSTILE: {HOSTILE: 1.0}, "$": {}}),
    ],
    ids=["loss", "sqnr", "range", "comparison"],
)
def test_a_chart_is_one_element_in_the_colors_of_the_page(chart):
    root = parsed(chart)
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", chart)) <= {"none", *re.findall(r"var\(--[a-z0-9-]+\)", chart)}
    assert not re.search("#[0-9a-f]{6}", chart)
    assert {entry.tag for entry in root.iter()} <= {
        f"{SVG}{name}" for name in ("svg", "g", "path", "text", "defs", "clipPath", "rect", "use", "title")
    }
    names = [entry.get("id") for entry in root.iter() if entry.get("id")]
    assert len(names) == len(set(names))
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", chart):
        assert "".join(used) in names


def test_the_same_data_is_drawn_as_the_same_bytes():
    assert sqnr_chart(LAYERS) == sqnr_chart(LAYERS)
