"""The smoke suite of the arena, on real networks and data where they are."""

from dataclasses import replace

import pytest
from benchmarks.networks import data_folder

from benchmarks import arena, records

SUITE = arena.SUITES["smoke"]


@pytest.mark.skipif(not data_folder().exists(), reason=f"no weights and data at {data_folder()}")
def test_the_smoke_suite_runs_and_our_images_beat_noise_on_keyword_spotting(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    arena.run_suite(replace(SUITE, examples=200))
    cells = {(cell["network"], cell["label"]): cell["scores"] for cell in records.read(arena.SUITE)}
    assert set(cells) == {(network, one.label) for network in SUITE.networks for one in SUITE.contestants}
    # measured: 0.15 against 0.76 nats; the full suite has the figures
    ours, noise = (cells["kws_dscnn", label]["W6A6 mse"]["kl_to_float"] for label in ("dffg", "noise"))
    assert ours < 0.5 * noise
    assert all(scores["W8A8 mse"]["drop_points"] < 5 for (_, label), scores in cells.items() if label == "dffg")
