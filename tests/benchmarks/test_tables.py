"""Tables, plots and verdicts from results made up here, so that every figure can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks import ablation, arena, arena_tables, figures, records, render, speed, tables


def cell(label, seed, drop, *, network="cifar10_resnet20", passes=4.0, quantizer="W4A4 mse", top1=90.0, se=0.5):
    return {
        "network": network,
        "generator": label.split()[0] if label != "real images" else label,
        "label": label,
        "seed": seed,
        "count": 1000,
        "images": 64,
        "seconds": 1.0,
        "passes_per_image": passes,
        "config": arena.config_of(arena_tables.CONTESTANTS[label], seed),
        "scores": {
            quantizer: {"float_top1": top1, "drop_points": drop, "standard_error": se, "kl_to_float": drop / 10}
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
    *(cell("dffg variability none", seed, 0.0) for seed in range(2)),
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


def test_noise_with_sigma_ranges_stands_in_every_column_of_its_widths(store):
    store["arena"] = [*ARENA, cell("sigma-noise", 0, 7.0, quantizer="W4A4 sigma", passes=0.0)]
    assert rows(arena_tables.arena_table())["sigma-noise"] == ["0", "7.00", "7.00"]


def test_a_claim_holds_within_the_error_over_images(store):
    store["arena"] = ARENA
    (verdict,) = rows(arena_tables.claims_table()).values()
    # 5.25 against 5.00 is worse by 0.25, the error over images is 0.5; noise is 5.75 worse
    assert verdict[:2] == ["-0.25 (SE 1.03 over seeds, 0.50 over images)", "yes"]
    assert verdict[2:] == ["+5.75 (SE 0.25 over seeds, 0.50 over images)", "yes"]


@pytest.mark.parametrize(("ours", "level", "gain"), [(5.6, "no", "yes"), (6.5, "no", "no")])
def test_a_claim_fails_beyond_it(store, ours, level, gain):
    store["arena"] = [c for c in ARENA if c["label"] != "dffg"] + [cell("dffg", 0, ours)]
    (verdict,) = rows(arena_tables.claims_table()).values()
    assert (verdict[1], verdict[3]) == (level, gain)


def test_nothing_is_claimed_where_real_images_fail(store):
    store["arena"] = [cell("real images", 0, 50.0), cell("noise", 0, 60.0), cell("dffg", 0, 40.0)]
    (verdict,) = rows(arena_tables.claims_table()).values()
    assert verdict[1] == "no claim, real images fail too"


def test_a_rival_is_ahead_only_at_its_own_cost_and_beyond_the_error(store):
    store["arena"] = ARENA
    (ahead,) = rows(arena_tables.pareto_table()).values()
    # genie at 4 passes beats ours at 4, and dgh at 500 beats all of ours; zeroq does not; settings of ours do not count
    assert "genie steps 4 batch_size 64 (4, +3.25" in ahead[0]
    assert "dgh (500, +2.00" in ahead[0]
    assert "zeroq" not in ahead[0]
    assert "variability" not in ahead[0]


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


def test_diversity_is_beside_real_images_and_predicts_by_rank(store):
    def one(setting, value, kl):
        return judged(setting, 0, kl, key="setting", **dict.fromkeys(tables.DIVERSITY_FIGURES, value))

    store["diversity"] = [one("real images", 2.0, 1.0), one("noise", 9.0, 99.0)] + [
        one(name, float(index), math.exp(-index)) for index, name in enumerate(("defaults", "a", "b", "c", "d"))
    ]
    found = {line.split("|")[2].strip(): line for line in tables.diversity_table().splitlines()[2:]}
    assert found["a"].split("|")[4].strip() == "0.50"  # a spread of 1 beside 2 of real images
    assert found["a"].split("|")[-2].strip() == "0.37"
    assert "-1.00 (p = 0.00, 5 settings)" in tables.diversity_predicts_table()


def test_speed_is_a_median_of_ratios_within_a_round(store):
    taken = [{"dffg": 1.0, "zeroq": 100.0}, {"dffg": 2.0, "zeroq": 220.0}, {"dffg": 1.0, "zeroq": 120.0}]
    record = speed.describe("n", taken)
    assert record["seconds"] == {"dffg": 1.0, "zeroq": 120.0}
    assert record["times_ours"]["zeroq"] == 110.0
    assert record["seconds_per_pass"] == pytest.approx({"dffg": 1 / (4 * 64), "zeroq": 120 / (500 * 64)})
    store["speed"] = [record]
    assert rows(tables.speed_table())["n"] == ["1 s", "120 s (110x)"]


def test_curves_hold_what_differs_in_passes_alone(store):
    store["arena"] = [*ARENA, cell("dffg burn_in 15", 0, 1.0, passes=16.0), cell("dffg steps 1", 0, 1.0, passes=1.0)]
    (panel,) = figures.panels(figures.passes_of)
    assert [(point.cost, point.top1) for point in panel.curves["dffg"]] == [(4.0, 84.75), (15.25, 87.0)]
    assert panel.lines == {"real images": 85.0, "noise": 79.0}
    assert set(panel.curves) == {"dffg", "zeroq", "dgh", "genie"}


def test_seconds_are_those_of_the_speed_suite(store):
    store["arena"] = ARENA
    assert figures.panels(figures.seconds_of) == []
    store["speed"] = [{"network": "cifar10_resnet20", "seconds_per_pass": {"dffg": 0.01}}]
    (panel,) = figures.panels(figures.seconds_of)
    assert [point.cost for point in panel.curves["dffg"]] == pytest.approx([0.01 * 4 * 64, 0.01 * 15.25 * 64])
    assert set(panel.curves) == {"dffg"}


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
