"""The floor is the layers and nothing else, and ratios are taken within rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import figures, records, step, step_tables
from dffg.graph.captured import capture
from dffg.machine.device import device_named
from dffg.spec import ImageSpec
from tests.benchmarks.small import small_benchmark
from tests.machine.test_device import needs_cuda


@pytest.fixture
def layers():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    captured = capture(network.eval(), spec=ImageSpec(shape=(3, 8, 8)))
    return step.Layers(captured, torch.randn(2, 3, 8, 8))


def test_operations_and_bytes_are_those_of_convolution_and_linear_layer_in_both_directions(layers):
    convolution, linear = 2 * (2 * 4 * 4 * 4) * 27, 2 * 2 * 64 * 5
    assert layers.flops() == 2 * (convolution + linear)
    read_and_written = (2 * 3 * 64 + 4 * 27 + 2 * 4 * 16) + (2 * 64 + 64 * 5 + 2 * 5)
    assert layers.bytes == 2 * 4 * read_and_written


def test_the_backward_pass_is_autograds(layers):
    for node, arguments, result in layers._calls:
        seen = arguments[0].clone().requires_grad_(True)
        gradient = torch.randn_like(result)
        (expected,) = torch.autograd.grad(node.target(seen, *arguments[1:]), seen, gradient)
        torch.testing.assert_close(step._backward_to_input(node, arguments, gradient), expected)


def test_ratios_are_medians_of_the_ratios_within_a_round():
    rounds = [{"floor": 1.0, "fast": 2.0}, {"floor": 10.0, "fast": 15.0}, {"floor": 2.0, "fast": 2.6}]
    described = step.describe(rounds)
    assert described["seconds"] == {"floor": 2.0, "fast": 2.6}
    assert described["times_floor"] == pytest.approx({"floor": 1.0, "fast": 1.5})


def test_the_table_shows_the_last_measurement_of_every_setting(monkeypatch):
    record = {"network": "net", "size": 32, "batch": 64, "threads": 2, **step.describe([{"floor": 0.1, "fast": 0.16}])}
    other = {**record, "threads": 1, **step.describe([{"floor": 0.2, "fast": 0.5, "mct": 1.0}])}
    older = {**record, **step.describe([{"floor": 9.0, "fast": 9.0}])}
    monkeypatch.setattr(step_tables.records, "read", lambda suite: [older, record, other])
    lines = step_tables.step_table().splitlines()
    assert lines[2:] == [
        "| net, 32 | 64 | 2 | 100 ms | 1.60x | 400.0 | - |",
        "| net, 32 | 64 | 1 | 200 ms | 2.50x | 128.0 | 5.00x |",
    ]


def test_what_the_last_run_left_out_is_that_of_an_earlier_one(monkeypatch):
    setting = {"network": "net", "size": 32, "batch": 64, "threads": 2}
    whole = {**setting, **step.describe([{"floor": 0.2, "fast": 0.4, "fast, bfloat16": 0.3, "zeroq": 0.6}])}
    part = {**setting, **step.describe([{"floor": 0.1, "fast": 0.16, "zeroq": 0.25}])}
    monkeypatch.setattr(step_tables.records, "read", lambda suite: [whole, part])
    (line,) = step_tables.step_table().splitlines()[2:]
    assert line == "| net, 32 | 64 | 2 | 100 ms | 1.60x | 400.0 | 1.50x | 2.50x |"


def test_a_device_has_a_line_of_its_own_and_no_place_under_the_roof_of_the_processor(monkeypatch):
    here = {
        "network": "net",
        "size": 32,
        "batch": 64,
        "threads": 2,
        **step.describe([{"floor": 0.1, "fast": 0.16, "mct": 0.7}]),
    }
    there = {**here, "device": "cuda:0 (H100)", **step.describe([{"floor": 0.01, "fast": 0.02}])}
    monkeypatch.setattr(step_tables.records, "read", lambda suite: [here, there])
    assert step_tables.step_table().splitlines()[2:] == [
        "| net, 32 | 64 | 2 | 100 ms | 1.60x | 400.0 | 7.00x |",
        "| net, 32 | 64 | cuda:0 (H100) | 10 ms | 2.00x | 3200.0 | - |",
    ]
    assert [record["device"] for record in figures._steps_here()] == ["cpu"]


def test_seconds_begin_when_nothing_is_left_to_do_and_end_when_all_is_done(monkeypatch):
    happened = []
    monkeypatch.setattr(step, "finish_on", lambda device: happened.append(device))
    monkeypatch.setattr(step.time, "perf_counter", lambda: happened.append("clock") or 1.0)
    step._timed(lambda: happened.append("work"), step.HOST)()
    assert happened == [step.HOST, "clock", "work", step.HOST, "clock"]


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_parts_are_measured_where_the_network_lies(monkeypatch, tmp_path, name):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(step, "load_benchmarks", lambda names: map(small_benchmark, names))
    monkeypatch.setattr(step, "_peak_bytes", lambda device: 1.0)
    monkeypatch.setattr(step, "_PEAK_SIZE", 8)
    parts = ["floor", "reference", "fast", "fast, bfloat16", "fast, sampled", "zeroq"]
    step.run_suite(["small"], batch=4, size=None, threads=1, rounds=2, parts=parts, device=device_named(name))
    (row,) = records.read(step.SUITE)
    assert (row["device"][:4], row["batch"], row["size"], len(row["rounds"])) == (name[:4], 4, 8, 2)
    assert set(row["seconds"]) == set(parts)


def test_the_peer_is_not_timed_on_an_accelerator():
    with pytest.raises(step.mct.PeerUnavailable):
        step._peer(small_benchmark(), 4, torch.device("meta"))


def test_what_is_timed_follows_one_of_its_kind():
    """Whatever ran before: the second call of two, in every round."""
    called = []

    def part(name):
        def seconds():
            called.append(name)
            return float(len(called) > 1 and called[-2] == name)

        return seconds

    taken = step.measure({name: part(name) for name in ("floor", "fast", "mct")}, rounds=3)
    assert [(one["floor"], one["fast"]) for one in taken] == [(1, 1)] * 3
    assert called[-3:] == ["mct"] * 3
