"""The low-bit benchmark, whole, on a small network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.networks import OURS, REAL

from benchmarks import lowbits, lowbits_tables, records
from tests.benchmarks.small import small_benchmark

METHODS = list(lowbits.METHODS)
LEARNED = [lowbits.RECONSTRUCTION]
Cells = list[dict[str, Any]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    """Every source and every method, but not all pairs: each is another file to write, which takes a second.

    Whatever is timed takes one second of this clock.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RESULTS", tmp_path_factory.mktemp("results"))
        patch.setattr(lowbits, "load_benchmarks", lambda names: iter([small_benchmark()]))
        patch.setattr(lowbits, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
        patch.setitem(lowbits.BUDGETS, "small", lowbits.Budget(images=48, steps=60, tuning_steps=5))
        run([REAL, lowbits.NOISE], LEARNED)
        yield run([OURS], METHODS)


def run(sources: list[str], methods: list[str], seed: int = 0) -> Cells:
    lowbits.run_suite(["small"], [seed], sources, ["W2A4"], methods)
    return records.read(lowbits.SUITE)


def test_every_cell_is_measured_once_in_the_runtime(measured: Cells) -> None:
    others = [(source, method) for source in (REAL, lowbits.NOISE) for method in LEARNED]
    assert [(cell["source"], cell["method"]) for cell in measured] == [*others, *((OURS, name) for name in METHODS)]
    assert all(cell["verified"] and cell["float_kernels"] == 0 for cell in measured)
    assert run([OURS], METHODS) == measured
    assert len(run([OURS], ["ranges"], seed=1)) == len(measured) + 1


def test_learning_is_nearer_to_float_than_ranges_and_its_seconds_add_up(measured: Cells) -> None:
    cells = {cell["method"]: cell for cell in measured if cell["source"] == OURS}
    assert cells["reconstruction"]["kl_to_float"] < cells["ranges"]["kl_to_float"]
    assert [cells[method]["seconds"] for method in ("ranges", "reconstruction", "fine-tuning")] == [1, 1, 2]
    assert cells["fine-tuning"]["kl_to_float"] != cells["reconstruction"]["kl_to_float"]


def test_a_network_without_steps_of_tuning_has_no_such_cell() -> None:
    untuned = lowbits.Budget(images=48, steps=5, tuning_steps=0)
    cells = lowbits.cells("small", OURS, 0, ["W3A4"], METHODS, untuned)
    assert {cell["method"] for cell in cells} == {*METHODS} - {"fine-tuning"}


def test_the_short_table_has_a_column_for_every_pair_of_widths(monkeypatch):
    def record(method, bits, drop, source="dffg"):
        head = {"network": "net", "float_top1": 90.0, "count": 100}
        return {**head, "method": method, "bits": bits, "drop_points": drop, "source": source}

    found = [record("ranges", "W4A4", 1.0), record("ranges", "W4A4", 3.0), record("reconstruction", "W3A3", 4.0)]
    monkeypatch.setattr(lowbits_tables, "results", lambda: [*found, record("ranges", "W4A4", 9.0, "noise")])
    assert lowbits_tables.lowbits_short_table().splitlines() == [
        "| network (float top-1, images) | method | W6A6 | W4A8 | W4A4 | W3A3 |",
        "|---|---|---|---|---|---|",
        "| net (90.00 %, 100) | ranges | - | - | 2.00 +- 1.41 | - |",
        "| net (90.00 %, 100) | reconstruction | - | - | - | 4.00 |",
    ]


def test_widths_are_claimed_where_real_images_took_the_same_steps(monkeypatch):
    def record(source, drop, bits="W4A4", method="reconstruction"):
        scores = {"float_top1": 90.0, "drop_points": drop, "standard_error": 0.5, "kl_to_float": drop / 10}
        return {"network": "net", "method": method, "bits": bits, "source": source, **scores}

    alone = record("dffg", 1.0, bits="W4A8"), record("real images", 9.0, method="fine-tuning")
    both = [record(source, drop, method="squant, bias") for source, drop in (("dffg", 5.0), ("real images", 5.0))]
    learned = [record("dffg", 6.0), record("real images", 4.0)]
    monkeypatch.setattr(lowbits_tables, "results", lambda: [*alone, *learned, *both])
    assert lowbits_tables.lowbits_claims_table().splitlines()[2:] == [
        "| net W4A4 squant, bias | 1 | +0.00 +- 0.50 | level | 1.00, holds | - | - |",
        "| net W4A4 reconstruction | 1 | -2.00 +- 0.50 | worse | 1.50, fails | - | - |",
    ]
