"""What the arena's tables say of results made up here."""

from __future__ import annotations

import math

import pytest

from benchmarks import arena_tables
from tests.benchmarks.made_up import ARENA, cell, rows


def test_the_arena_shows_mean_and_deviation_over_seeds(store):
    store["arena"] = ARENA
    found = rows(arena_tables.arena_table())
    assert found["real images"] == ["0", "-", "5.00 +- 1.41"]
    assert found["dffg"] == ["4", "-", "5.25 +- 0.35"]
    assert list(found)[:2] == ["real images", "noise"]


def test_equal_passes_stand_together(store):
    long = cell("zeroq steps 64", 0, 1.0, passes=64.0), cell("dffg steps 32 keep_every 2", 0, 1.0, passes=7.75)
    store["arena"] = [*long, *ARENA]
    found = arena_tables.equal_passes_table()
    assert [(line.split("|")[1].strip(), line.split("|")[2].strip()) for line in found.splitlines()[2:]] == [
        ("dffg", "4"),
        ("dffg variability none", "4"),
        ("genie steps 4 batch_size 64", "4"),
        ("dffg steps 64 keep_every 4", "15.25"),
        ("zeroq steps 16", "16"),
        ("zeroq steps 64", "64"),
    ]


def test_drops_by_the_number_of_images_appear_once_there_are_some(store):
    store["arena"] = ARENA
    assert arena_tables.counted_table().startswith("Not measured yet")
    store["arena"] = [
        *ARENA,
        cell("dffg count 16", 0, 8.0, passes=13.0),
        cell("real images count 256", 0, 4.5, passes=0.0),
    ]
    assert [line.strip("| ") for line in arena_tables.counted_table().splitlines()[2:]] == [
        "real images | 64 | 0 | - | 5.00 +- 1.41",
        "real images | 256 | 0 | - | 4.50",
        "noise | 64 | 0 | - | 11.00 +- 0.00",
        "dffg | 16 | 13 | - | 8.00",
        "dffg | 64 | 4 | - | 5.25 +- 0.35",
    ]
    assert "count" not in arena_tables.arena_table() + arena_tables.pareto_table()


def test_speed_is_claimed_beside_accuracy(store):
    store["arena"] = [*ARENA, *(cell("zeroq", seed, 5.5, passes=500.0) for seed in range(2))]
    assert rows(arena_tables.faster_table()) == {}
    store["speed"] = [{"network": "cifar10_resnet20", "times_ours": {"zeroq": 110.6, "mct": 250.0}}]
    assert rows(arena_tables.faster_table()) == {
        "cifar10_resnet20 W4A4 mse": ["zeroq (2)", "111", "5.25", "5.50", "level"]
    }


def test_views_stand_beside_none(store):
    store["arena"] = ARENA
    (found,) = rows(arena_tables.views_table()).values()
    assert found[:3] == ["2", "-5.25 +- 0.56", "worse"]


def test_noise_with_sigma_ranges_stands_in_every_column_of_its_widths(store):
    store["arena"] = [*ARENA, cell("sigma-noise", 0, 7.0, quantizer="W4A4 sigma", passes=0.0)]
    assert rows(arena_tables.arena_table())["sigma-noise"] == ["0", "7.00", "7.00"]


def test_claims_are_differences_with_the_errors_over_seeds_and_images(store):
    store["arena"] = ARENA
    (verdict,) = rows(arena_tables.claims_table()).values()
    # over seeds 0.25 for ours, 1 for real images and 0 for noise; over images 0.5
    over_real, over_noise = math.hypot(0.25, 1, 0.5), math.hypot(0.25, 0.5)
    over_noise_cells = [f"+5.75 +- {over_noise:.2f}", "yes"]
    assert verdict == ["2", f"-0.25 +- {over_real:.2f}", "level", "1.05, holds", *over_noise_cells]


@pytest.mark.parametrize(
    ("ours", "beside", "over"),
    [
        (3.0, ("better", "0.60, holds"), "yes"),
        (5.6, ("level", "1.12, holds"), "within the error"),
        (6.3, ("worse", "1.26, fails"), "within the error"),
        (7.0, ("worse", "1.40, fails"), "no"),
    ],
)
def test_claims_fail_beyond_the_error(store, ours, beside, over):
    # one seed of ours: the errors are 1.12 beside real images and 0.5 beside noise; divergences are a tenth of drops
    store["arena"] = [c for c in ARENA if c["label"] != "dffg"] + [cell("dffg", 0, ours)]
    (verdict,) = rows(arena_tables.claims_table()).values()
    assert (verdict[0], (verdict[2], verdict[3]), verdict[5]) == ("1", beside, over)


def test_nothing_is_claimed_where_real_images_fail(store):
    store["arena"] = [cell("real images", 0, 50.0), cell("noise", 0, 60.0), cell("dffg", 0, 40.0)]
    (verdict,) = rows(arena_tables.claims_table()).values()
    assert verdict[2:4] == ["no claim, real images fail too", "0.80"]


def test_claims_are_made_at_widths_that_only_the_main_sources_have(store):
    main = ("real images", 8.0), ("noise", 1.0), ("dffg", 6.0)
    store["arena"] = [cell(label, 0, drop, network="mobilenet_v2", quantizer="W8A6 mse") for label, drop in main]
    found = rows(arena_tables.claims_table())["mobilenet_v2 W8A6 mse"]
    assert found[:4] == ["1", "+2.00 +- 0.50", "better", "0.75, holds"]
    assert "W8A6" not in arena_tables.arena_table()


def test_rivals_that_beat_our_defaults_are_listed_by_their_cost(store):
    store["arena"] = [*ARENA, cell("sigma-noise", 0, 4.0, quantizer="W4A4 sigma", passes=0.0)]
    (ahead,) = rows(arena_tables.pareto_table()).values()
    # zeroq is worse than ours, noise too
    assert sorted(ahead[0].split("; ")) == [
        "genie steps 4 batch_size 64 (4: +3.25 +- 0.56)",
        "sigma-noise (0: +1.25 +- 0.56)",
    ]
    assert ahead[1] == "dgh (500: +4.25 +- 0.56)"
    ours = ["dffg steps 64 keep_every 4 (15.25: +2.25 +- 0.56)", "dffg variability none (4: +5.25 +- 0.56)"]
    assert sorted(ahead[2].split("; ")) == ours


def test_a_lead_within_the_error_is_none(store):
    store["arena"] = [cell("real images", 0, 5.0), cell("noise", 0, 5.0), cell("dffg", 0, 5.0), cell("zeroq", 0, 4.6)]
    assert list(rows(arena_tables.pareto_table()).values()) == [["none", "none", "none"]]


def test_cells_on_fewer_images_are_not_taken_for_further_seeds(store):
    store["arena"] = [*ARENA, {**cell("dffg", 7, 90.0), "count": 500}]
    assert rows(arena_tables.arena_table())["dffg"][2] == "5.25 +- 0.35"


def test_a_newer_cell_takes_the_place_of_an_older_one(store):
    store["arena"] = [*ARENA, cell("zeroq steps 16", 0, 7.0, passes=16.0)]
    assert rows(arena_tables.arena_table())["zeroq steps 16"][2] == "8.00 +- 1.41"


def test_a_cell_of_former_defaults_is_not_shown(store):
    former = cell("dffg", 0, 5.0)
    former["config"] = {**former["config"], "decay": 0.123}
    store["arena"] = [cell("noise", 0, 9.0), former]
    assert list(rows(arena_tables.arena_table())) == ["noise"]
