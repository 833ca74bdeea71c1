"""Tables, plots and verdicts from results made up here, so that every figure can be worked out by hand."""

from __future__ import annotations

import math
import re

import pytest

from benchmarks import ablation, arena, arena_tables, figures, records, render, speed, tables


def cell(
    label, seed, drop, *, network="cifar10_resnet20", passes=4.0, quantizer="W4A4 mse", top1=90.0, se=0.5, kl=None
):
    return {
        "network": network,
        "generator": label.split()[0] if label != "real images" else label,
        "label": label,
        "seed": seed,
        "count": 1000,
        "images": arena_tables.CONTESTANTS[label].count,
        "seconds": 1.0,
        "passes_per_image": passes,
        "config": arena.config_of(arena_tables.CONTESTANTS[label], seed),
        "scores": {
            quantizer: {
                "float_top1": top1,
                "drop_points": drop,
                "standard_error": se,
                "kl_to_float": drop / 10 if kl is None else kl,
            }
        },
    }


ARENA = [
    *(cell("real images", seed, drop, passes=0.0) for seed, drop in enumerate((4.0, 6.0))),
    *(cell("noise", seed, drop, passes=0.0) for seed, drop in enumerate((11.0, 11.0))),
    *(cell("dffg", seed, drop) for seed, drop in enumerate((5.0, 5.5))),
    *(cell("dffg steps 64 keep_every 4", seed, 3.0, passes=15.25) for seed in range(2)),
    *(cell("zeroq steps 16", seed, 9.0, passes=16.0) for seed in range(2)),
    *(cell("dgh", seed, 1.0, passes=500.0) for seed in range(2)),
    *(cell("genie steps 4 batch_size 64", seed, 2.0, passes=4.0) for seed in range(2)),
    *(cell("dffg variability none", seed, 0.0, kl=0.2) for seed in range(2)),
]


@pytest.fixture
def store(monkeypatch):
    results: dict[str, list[dict]] = {}
    monkeypatch.setattr(records, "read", lambda suite: results.get(suite, []))
    return results


def rows(table):
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines[2:]}


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


def judged(change, seed, *values, network="n", key="change", **figures_of):
    return {
        "network": network, key: change, "seed": seed, "factor": "f",
        "kl": {str(index): value for index, value in enumerate(values)}, **figures_of,
    }  # fmt: skip


def test_the_ablation_compares_geometric_means(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0, 4.0),
        judged(ablation.BASE, 1, 2.0, 2.0),
        judged("decay 0", 0, 2.0, 8.0),
        judged("decay 0", 1, 4.0, 4.0),
    ]
    line = next(line for line in tables.ablation_table().splitlines() if "decay 0 " in line)
    assert [part.strip() for part in line.strip("|").split("|")] == ["f", "decay 0", "2.00 +- 0.00", "2.00"]


def test_a_change_is_compared_with_what_it_differs_from_in_one_factor(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0),
        judged("keep the last only", 0, 4.0),
        judged("running mix", 0, 2.0),
    ]
    line = next(line for line in tables.ablation_table().splitlines() if "running mix" in line)
    assert line.strip("|").split("|")[2].strip() == "0.50"


def test_quantizers_are_compared_seed_by_seed(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0, 3.0),
        judged(ablation.BASE, 1, 10.0, 3.0),
        judged(ablation.BASE, 2, 7.0, 7.0),
        judged("slack 0.2", 0, 2.0, 3.0),
        judged("slack 0.2", 1, 5.0, 3.0),
    ]
    found = rows(tables.by_quantizer_table())
    assert found["n 0"][0] == "1.00 +- 0.69 (2)"  # twice and half: ln 2 is the error of two
    assert found["n 1"][0] == "1.00 +- 0.00 (2)"
    assert found["n 1"][1] == "-"


NAMES = ("batch 4", "decay 0", "decay 1", "per image")


def test_diversity_is_beside_real_images_and_predicts_by_rank(store):
    def one(setting, value, kl):
        return judged(setting, 0, kl, key="setting", **dict.fromkeys(tables.DIVERSITY_FIGURES, value))

    store["diversity"] = [one("real images", 2.0, 1.0), one("noise", 9.0, 99.0)] + [
        one(name, float(index), math.exp(-index)) for index, name in enumerate(("defaults", *NAMES))
    ]
    found = {line.split("|")[2].strip(): line for line in tables.diversity_table().splitlines()[2:]}
    assert found[NAMES[0]].split("|")[4].strip() == "0.50"  # a spread of 1 beside 2 of real images
    assert found[NAMES[0]].split("|")[-2].strip() == "0.37"
    assert "-1.00 (p = 0.00, 5 settings)" in tables.diversity_predicts_table()


def test_speed_is_a_median_of_ratios_within_a_round(store):
    taken = [{"dffg": 1.0, "zeroq": 100.0}, {"dffg": 2.0, "zeroq": 220.0}, {"dffg": 1.0, "zeroq": 120.0}]
    record = speed.describe("n", taken)
    assert record["seconds"] == {"dffg": 1.0, "zeroq": 120.0}
    assert record["times_ours"]["zeroq"] == 110.0
    assert record["seconds_per_pass"] == pytest.approx({"dffg": 1 / (4 * 64), "zeroq": 120 / (500 * 64)})
    store["speed"] = [record]
    assert rows(tables.speed_table())["n"] == ["1 s", "120 s (110x)"]
    store["speed"] = [speed.describe("n", [{"dffg": 1.0, "adam-snapshots": 0.75}])]
    assert rows(tables.speed_table())["n"] == ["1 s", "0.75 s (0.8x)"]


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


def test_pages_are_rendered_and_checked(store, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("a\n<!-- table: arena -->\nold\n<!-- end -->\nb\n")
    store["arena"] = ARENA
    assert render.main(tmp_path, check=True) == 1
    assert "old" in (tmp_path / "README.md").read_text()
    assert render.main(tmp_path) == 0
    assert "5.25 +- 0.35" in (tmp_path / "README.md").read_text()
    assert render.main(tmp_path, check=True) == 0
    store["arena"] = ARENA[:-4]
    assert render.main(tmp_path, check=True) == 1
    assert "README.md, pareto" in capsys.readouterr().out


def test_published_tables_have_rows():
    """A new option makes cells of other settings of all that is stored, until the stored rows say what they had."""
    pages = [render.ROOT / "README.md", *sorted((render.ROOT / "docs").glob("*.md"))]
    tables_of = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
    found = {name: body for page in pages for name, body in tables_of.findall(page.read_text(encoding="utf-8"))}
    assert not {name for name, body in found.items() if len(body.splitlines()) <= 2}
