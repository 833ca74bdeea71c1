"""Plots of results made up here."""

from __future__ import annotations

import pytest

from benchmarks import figures
from tests.benchmarks.made_up import ARENA, cell


def test_curves_hold_what_differs_in_passes_alone(store):
    aside = [cell("dffg burn_in 15", 0, 1.0, passes=16.0), cell("dffg steps 1", 0, 1.0, passes=1.0)]
    store["arena"] = [*ARENA, *aside, cell("i-fgsm", 0, 2.0), cell("ones", 0, 2.0, passes=0.0)]
    (panel,) = figures.panels(figures.passes_of)
    assert [(point.cost, point.top1) for point in panel.curves["dffg"]] == [(4.0, 84.75), (15.25, 87.0)]
    others = [(point.cost, point.top1) for point in panel.curves[figures.OTHERS_OF_OURS]]
    assert sorted(others) == [(1.0, 89.0), (4.0, 88.0), (4.0, 90.0), (16.0, 89.0)]
    assert panel.lines == {"real images": 85.0, "noise": 79.0}
    assert set(panel.curves) == {"dffg", "zeroq", "dgh", "genie", figures.OTHERS_OF_OURS}


def test_noise_with_sigma_ranges_is_a_line_beside_every_quantizer_of_its_widths(store):
    store["arena"] = [*ARENA, cell("sigma-noise", 0, 7.0, quantizer="W4A4 sigma", passes=0.0)]
    (panel,) = figures.panels(figures.passes_of)
    assert panel.lines == {"real images": 85.0, "noise": 79.0, "sigma-noise": 83.0}


def test_seconds_are_those_of_the_speed_suite(store):
    store["arena"] = ARENA
    assert figures.panels(figures.seconds_of) == []
    store["speed"] = [{"network": "cifar10_resnet20", "seconds_per_pass": {"dffg": 0.01}}]
    (panel,) = figures.panels(figures.seconds_of)
    assert [point.cost for point in panel.curves["dffg"]] == pytest.approx([0.01 * 4 * 64, 0.01 * 15.25 * 64])
    assert set(panel.curves) == {"dffg", figures.OTHERS_OF_OURS}


@pytest.mark.parametrize("theme", figures.THEMES)
def test_a_plot_is_the_same_twice_and_stale_once_its_data_changes(store, theme):
    store["arena"] = ARENA
    drawn = figures.svg("pareto", theme)
    assert drawn == figures.svg("pareto", theme)
    assert figures.THEMES[theme]["ours"] in drawn
    assert figures.is_current("pareto", drawn)
    store["arena"] = ARENA[1:]
    assert not figures.is_current("pareto", drawn)
