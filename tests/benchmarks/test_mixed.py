"""The benchmark of mixed widths, whole, on a small network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import figures, mixed, records
from tests.benchmarks.small import small_benchmark

KINDS = dict.fromkeys(mixed.UNIFORM_BITS, mixed.UNIFORM) | dict.fromkeys(("0.3x", "0.5x", "0.75x"), mixed.MIXED)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, object]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RESULTS", tmp_path_factory.mktemp("results"))
        patch.setattr(mixed, "load_benchmarks", lambda names: iter([small_benchmark()]))
        assert KINDS.items() < mixed.KINDS.items()
        patch.setattr(mixed, "KINDS", KINDS)  # every size is another file to write, which takes a second
        mixed.run_suite(["small"], [0])
        yield records.read(mixed.SUITE)


def test_every_budget_is_measured_once_and_shown(measured: list[dict[str, object]]) -> None:
    assert [cell["at"] for cell in measured] == list(KINDS)
    assert all(cell["verified"] for cell in measured)
    mixed.run_suite(["small"], [0])
    assert records.read(mixed.SUITE) == measured
    sizes = {str(cell["at"]): float(str(cell["size_bytes"])) for cell in measured}
    assert sizes["0.3x"] < sizes["0.5x"]
    divergences = {str(cell["at"]): float(str(cell["kl_to_float"])) for cell in measured}
    assert divergences["W8A8"] < divergences["0.75x"] < divergences["0.3x"]
    rows = mixed.mixed_table().splitlines()
    assert len(rows) == 2 + len(measured)
    assert all(row.startswith("| small (100.00 %, 40)") for row in rows[2:])
    assert {"W8A8", "W4A8", "mixed, 0.3x of W8"} <= {row.split(" | ")[1] for row in rows[2:]}
    points = mixed.frontiers()["small"][mixed.MIXED]
    assert points == sorted(points)
    assert len(points) == 3


def test_a_stored_plot_is_stale_when_a_result_is_added(
    measured: list[dict[str, object]], store: dict[str, list[dict[str, object]]]
) -> None:
    store[mixed.SUITE] = list(measured)
    drawn = figures.svg("frontier", "dark")
    assert figures.is_current("frontier", drawn)
    store[mixed.SUITE].append({**measured[-1], "kl_to_float": 9.0})
    assert not figures.is_current("frontier", drawn)
