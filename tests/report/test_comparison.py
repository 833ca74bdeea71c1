from __future__ import annotations

import dataclasses
import json

import pytest

from dffg.config import QuantizationConfig
from dffg.report.comparison import differences, run_of
from tests.report.pages import plain_report
from tests.report.test_result import ACCURACY


def test_a_run_has_the_figures_of_its_report():
    run = run_of("out", plain_report(accuracy=dataclasses.asdict(ACCURACY)))
    assert dataclasses.asdict(run) == {
        "name": "out",
        "model": "demo:network",
        "scheme": "W8A8",
        "verified": True,
        "size_bytes": 1000,
        "latency_ms": 2.0,
        "integer_kernels": 3,
        "float_kernels": 0,
        "drop_points": 1.25,
        "standard_error": 0.5,
        "agreement": 0.975,
        "seconds": 15.5,
        "seed": 7,
    }
    assert run_of("out", plain_report()).drop_points is None


def test_equal_runs_do_not_differ():
    assert differences([plain_report(), plain_report()]) == ()


def test_what_differs_is_named_with_its_values():
    narrow = json.loads(json.dumps(dataclasses.asdict(QuantizationConfig(bits="W4A4", reduce_range=False))))
    one, other = plain_report(), plain_report(quantization=narrow, version="0.2.0")
    found = {entry.option: entry.values for entry in differences([one, other, one])}
    assert found == {
        "dffg": ("0.1.0", "0.2.0", "0.1.0"),
        "quantization.bits": ("W8A8", "W4A4", "W8A8"),
        "quantization.equalize": ("none", "auto", "none"),
    }


def test_another_target_is_one_difference():
    other = json.loads(json.dumps(dataclasses.asdict(QuantizationConfig(target="openvino", reduce_range=False))))
    reports = [plain_report(), plain_report(quantization=other, target="openvino")]
    assert [entry.option for entry in differences(reports)] == ["quantization.target"]


@pytest.mark.parametrize("order", [1, -1])
def test_an_option_that_one_run_does_not_have_differs(order):
    reports = [plain_report(), plain_report(synthesis=None)][::order]
    found = {entry.option: entry.values for entry in differences(reports)}
    assert found["synthesis.steps"] == (16, None)[::order]
