"""The table at the top of the README, from results made up here."""

from __future__ import annotations

from benchmarks import int8, lowbits_tables, records, summary


def record(source, seed, drop, network="net", **others):
    head = {"network": network, "source": source, "seed": seed, "drop_points": drop, "float_top1": 90.0, "count": 100}
    return {**head, **others}


def test_one_row_a_network_from_three_suites(monkeypatch):
    eight = [record("dffg", seed, drop, ranges="mse") for seed, drop in enumerate((1.0, 3.0))]
    eight += [record("normal noise", 0, 7.0, ranges="mse"), record("real images", 0, 9.0, ranges="minmax")]
    ours = [{**one, "config": int8.config_of(one["source"], one["seed"])} for one in eight]
    speed = [{"network": "net", "batch": 1, "speedup": 2.26}]
    monkeypatch.setattr(records, "read", lambda suite: {"int8": ours, "latency": speed}.get(suite, []))
    learned = {"bits": "W4A4", "method": "reconstruction"}
    four = [record("dffg", 0, 5.0, **learned), record("real images", 0, 4.0, "other", **learned)]
    four += [record("dffg", 0, 8.0, bits="W4A4", method="ranges"), record("dffg", 0, 8.0, bits="W3A3", method=learned)]
    monkeypatch.setattr(lowbits_tables, "results", lambda: four)
    assert summary.summary_table().splitlines()[2:] == [
        "| net (90.00 %, 100) | 2.00 +- 1.41 | - | 7.00 | 2.3x | 5.00 | - |",
        "| other (90.00 %, 100) | - | - | - | - | - | 4.00 |",
    ]
