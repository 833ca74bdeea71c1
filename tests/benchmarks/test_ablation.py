"""Changes beside what they differ from in one factor, from results made up here."""

from __future__ import annotations

from benchmarks import ablation, ablation_tables
from tests.benchmarks.made_up import judged, rows


def test_the_ablation_compares_geometric_means(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0, 4.0),
        judged(ablation.BASE, 1, 2.0, 2.0),
        judged("decay 0", 0, 2.0, 8.0),
        judged("decay 0", 1, 4.0, 4.0),
    ]
    line = next(line for line in ablation_tables.ablation_table().splitlines() if "decay 0 " in line)
    assert [part.strip() for part in line.strip("|").split("|")] == ["f", "decay 0", "2.00 +- 0.00", "2.00"]


def test_a_change_is_compared_with_what_it_differs_from_in_one_factor(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0),
        judged("keep the last only", 0, 4.0),
        judged("running mix", 0, 2.0),
    ]
    line = next(line for line in ablation_tables.ablation_table().splitlines() if "running mix" in line)
    assert line.strip("|").split("|")[2].strip() == "0.50"


def test_quantizers_are_compared_seed_by_seed(store):
    store["ablation"] = [
        judged(ablation.BASE, 0, 1.0, 3.0),
        judged(ablation.BASE, 1, 10.0, 3.0),
        judged(ablation.BASE, 2, 7.0, 7.0),
        judged("slack 0.2", 0, 2.0, 3.0),
        judged("slack 0.2", 1, 5.0, 3.0),
    ]
    found = rows(ablation_tables.by_quantizer_table())
    assert found["n 0"][0] == "1.00 +- 0.69 (2)"  # twice and half: ln 2 is the error of two
    assert found["n 1"][0] == "1.00 +- 0.00 (2)"
    assert found["n 1"][1] == "-"
