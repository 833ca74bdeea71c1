"""Which rows a table is made of."""

from __future__ import annotations

from benchmarks.rows import current


def test_what_was_measured_with_other_settings_hides_nothing(store):
    def row(value, slack, cell="a"):
        return {"cell": cell, "value": value, "config": {"slack": slack}}

    real = {"cell": "real images", "value": 9}
    store["suite"] = [row(1, 0.2), row(2, 0.2), row(3, 0.1), row(4, 0.1, "b"), row(5, 0.2, "gone"), real]
    today = {"a": {"slack": 0.2}, "b": {"slack": 0.2}, "real images": {}}
    found = current("suite", ("cell",), lambda row: today.get(row["cell"]))
    assert [row["value"] for row in found] == [2, 9]
