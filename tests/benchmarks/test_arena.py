from dataclasses import asdict, replace

import pytest
from benchmarks.arena import Contestant, Suite, narrowed, passes_per_image

from benchmarks import arena, records
from dffg.config import SynthesisConfig
from dffg.graph.captured import capture
from dffg.spec import ImageSpec
from tests.benchmarks.small import SPEC, small_benchmark

CONTESTANTS = (
    Contestant(generator=arena.REAL),
    Contestant(generator="noise"),
    Contestant(generator="dffg", options={"steps": 4}),
    Contestant(generator="sigma-noise"),
)
SUITE = Suite(networks=("small",), contestants=CONTESTANTS, seeds=(0, 1), examples=30)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Of few widths: every one is another file to write, which takes a second."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(arena, "BITS", ("W6A6",))
    monkeypatch.setattr(arena, "HARD_BITS", ("W6A6",))
    return lambda: records.read(arena.SUITE)


def load(names):
    return iter([small_benchmark(name) for name in names])


def test_every_cell_is_measured_once_and_a_stopped_run_goes_on(results):
    arena.run_suite(narrowed(SUITE, [], ["noise"], [0]), load)
    first = results()
    assert [(cell["label"], cell["seed"]) for cell in first] == [("noise", 0)]
    arena.run_suite(SUITE, load)
    cells = results()
    assert cells[:1] == first
    assert len(cells) == len({(cell["label"], cell["seed"]) for cell in cells}) == 8
    arena.run_suite(SUITE, load)
    assert results() == cells


def test_a_cell_holds_what_is_needed_to_judge_it(results, monkeypatch):
    monkeypatch.setattr(arena, "BITS", ("W8A8", "W6A6", "W4A4"))
    monkeypatch.setattr(arena, "HARD_BITS", ("W6A6", "W4A4"))
    arena.run_suite(narrowed(SUITE, [], ["dffg steps 4", "sigma-noise"], [1]), load)
    ours, sigma = results()
    assert (ours["network"], ours["generator"], ours["label"], ours["count"]) == ("small", "dffg", "dffg steps 4", 30)
    assert (ours["passes_per_image"], ours["config"]["steps"], ours["config"]["seed"]) == (4.0, 4, 1)
    assert ours["seconds"] > 0
    assert set(ours["scores"]) == {f"{bits} {ranges}" for bits in arena.HARD_BITS for ranges in arena.RANGES}
    assert set(sigma["scores"]) == {f"{bits} sigma" for bits in arena.BITS}
    score = ours["scores"]["W6A6 mse"]
    assert score["float_top1"] == 100.0
    assert 0 < score["kl_to_float"] < ours["scores"]["W4A4 mse"]["kl_to_float"]
    assert {"commit", "environment"} <= set(ours)


def test_what_takes_long_on_a_large_network_is_measured_where_it_is_asked_for(results, capsys, monkeypatch):
    monkeypatch.setattr(arena, "LONG", (Contestant(generator="noise"),))
    monkeypatch.setattr(arena, "LARGEST_SMALL", 1)
    arena.run_suite(narrowed(SUITE, [], ["noise"], [0]), load)
    assert "skipped noise on small: it takes over half an hour" in capsys.readouterr().out
    assert results() == []
    arena.run_suite(narrowed(SUITE, [], ["noise"], [0], long=True), load)
    assert [cell["label"] for cell in results()] == ["noise"]


def test_a_peer_that_is_not_there_is_skipped_with_its_reason(results, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DFFG_PEERS", str(tmp_path / "nowhere"))
    arena.run_suite(Suite(
        networks=("small",), contestants=(Contestant(generator=arena.PEER),), seeds=(0,), examples=30
    ), load)  # fmt: skip
    assert "skipped mct on small: MCT is not installed" in capsys.readouterr().out
    assert results() == []


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 4.0),  # 16 passes of a batch of 16 give 64 images
        ({"burn_in": 15}, 16.0),
        ({"steps": 64}, 13.0),  # the fourth snapshot ends it, 12 steps early
        ({"steps": 64, "keep_every": 4}, 15.25),
        ({"burn_in": 8}, 3.0),
        ({"batch_size": 8, "burn_in": 8}, 2.0),
        ({"generator": "dsg"}, 625.0),  # two batches of 40
        ({"generator": "dgh"}, 500.0),
        ({"generator": "zeroq"}, 500.0),
        ({"generator": "vmi-fgsm"}, 12.0),
        ({"generator": "noise"}, 0.0),
        ({"batch_size": 32}, 7.0),
    ],
    ids=str,
)
def test_passes_are_counted_for_every_image_that_is_kept(options, passes):
    assert passes_per_image(SynthesisConfig(count=64, **options)) == passes


def test_every_contestant_of_every_suite_can_be_configured():
    for suite in arena.SUITES.values():
        assert len({one.label for one in suite.contestants}) == len(suite.contestants)
        for one in suite.contestants:
            if one.generator not in (arena.REAL, arena.PEER):
                SynthesisConfig(generator=one.generator, **one.options)


def test_a_cell_of_other_defaults_is_measured_again(results, monkeypatch):
    suite = narrowed(SUITE, [], ["dffg steps 4"], [0])
    arena.run_suite(suite, load)
    stored = results()[0]
    assert stored["config"]["slack"] == SynthesisConfig().slack
    monkeypatch.setattr(records, "read", lambda suite: [{**stored, "config": {**stored["config"], "slack": 0.5}}])
    measured = []
    monkeypatch.setattr(records, "append", lambda suite, cell: measured.append(cell["label"]))
    arena.run_suite(suite, load)
    assert measured == ["dffg steps 4"]


def test_a_contestant_can_have_a_number_of_images_of_its_own():
    counted = [Contestant(generator=name, options={"count": 32}) for name in (arena.REAL, "noise", "dffg")]
    assert [one.label for one in counted] == ["real images count 32", "noise count 32", "dffg count 32"]
    assert all(one in arena.COUNTED for one in counted)
    images = [arena.make(small_benchmark(), capture(small_benchmark().model, spec=SPEC), one, 0) for one in counted]
    assert [len(made.inputs) for made in images] == [32, 32, 32]
    assert arena.config_of(counted[2], 0)["count"] == 32
    assert arena.config_of(Contestant(generator="dffg"), 0) == asdict(SynthesisConfig(count=64, seed=0))


def test_more_real_images_than_there_are_and_counts_on_large_networks_are_skipped():
    benchmark = small_benchmark()
    many = Contestant(generator=arena.REAL, options={"count": 128})
    assert arena.make(benchmark, None, many, 0) == "there are 80 real images to calibrate with"
    large = replace(benchmark, spec=ImageSpec(shape=(3, 224, 224)))
    assert arena.make(large, None, many, 0) == "numbers of images are compared on small networks"


def test_widths_are_those_where_the_data_matters():
    small, large = ImageSpec(shape=(3, 32, 32)), ImageSpec(shape=(3, 224, 224))
    own, other = Contestant(generator="zeroq"), Contestant(generator="zeroq", options={"steps": 16})
    assert arena.bits_for(own, small) == arena.bits_for(own, large) == arena.BITS
    assert arena.bits_for(other, small) == ("W6A6", "W4A4")
    assert arena.bits_for(other, large) == ("W8A8", "W6A6")
