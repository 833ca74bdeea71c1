"""What the targets accept, and what that does to widths, ranges and places."""

from __future__ import annotations

import math

import pytest
import torch

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.captured import capture
from dffg.graph.nodes import nodes_by_name
from dffg.quant.affine import fake_quantize, signed_qparams
from dffg.quant.decide import prepare_float
from dffg.quant.placement import place, prepare
from dffg.quant.ranges import Histogram, minmax_range, mse_range
from dffg.targets import EXECUTORCH, ONNXRUNTIME, OPENVINO, TARGETS, TENSORRT, TORCH
from tests.export import MIDDLES, SPEC, Body, mean_head
from tests.networks import randomize

CONFIG = QuantizationConfig()


def placed(body: Body, target: object) -> dict[str, str]:
    """Quantized node -> node whose range it uses."""
    module, _ = prepare_float(capture(randomize(body), spec=SPEC), CONFIG)
    return {node.name: source.name for node, source in place(prepare(module), target).source.items()}


def test_the_names_are_those_of_the_command_line():
    assert list(TARGETS) == ["onnxruntime", "openvino", "tensorrt", "torch", "executorch"]
    assert all(QuantizationConfig(target=name).rules.name == name for name in TARGETS)


@pytest.mark.parametrize("target", [OPENVINO, TORCH])
@pytest.mark.parametrize("name", list(MIDDLES))
def test_runtimes_with_the_same_rules_quantize_the_same_tensors(name, target):
    assert placed(MIDDLES[name](), target) == placed(MIDDLES[name](), ONNXRUNTIME)


def test_where_integers_come_out_the_answer_is_quantized_too():
    added = placed(MIDDLES["plain"](), EXECUTORCH).keys() - placed(MIDDLES["plain"](), ONNXRUNTIME).keys()
    assert added == {"linear"}


def test_concatenated_tensors_have_one_range_where_they_must():
    body = MIDDLES["concat"]
    assert placed(body(), ONNXRUNTIME)["relu_1"] == "relu_1"
    found = placed(body(), EXECUTORCH)
    assert (found["relu_1"], found["relu_2"], found["cat"], found["relu"]) == ("cat", "cat", "cat", "relu")


def test_a_concatenation_of_concatenations_has_one_range():
    def middle(body: Body, x: torch.Tensor) -> torch.Tensor:
        return body.head(torch.cat([torch.cat([body.left(x), x], 1), body.right(x)], 1).mean((2, 3)))

    found = placed(Body(middle, 24), EXECUTORCH)
    assert {name: source for name, source in found.items() if name.startswith(("cat", "relu"))} == dict.fromkeys(
        ("relu", "relu_1", "relu_2", "cat", "cat_1"), "cat_1"
    )


def test_concatenations_that_share_operands_have_the_range_of_the_last():
    def middle(body: Body, x: torch.Tensor) -> torch.Tensor:
        left, right = body.left(x), body.right(x)
        both = torch.cat([left, x], 1)
        return body.head(torch.cat([left, x, right], 1).mean((2, 3))) + both.mean()

    found = placed(Body(middle, 24), EXECUTORCH)
    assert {source for name, source in found.items() if name.startswith(("cat", "relu"))} == {"cat_1"}


def test_only_what_is_read_is_quantized_where_the_target_asks_for_that():
    found = placed(Body(lambda body, x: mean_head(body, body.left[:2](x) + x)), TENSORRT)
    # the result of the left layer joins the sum
    assert set(found) == {"x", "relu", "add", "global_average_pool_default", "flatten_using_ints"} | (
        found.keys() & {"flatten"}
    )


def test_activations_stay_where_signed_integers_do_not_end_at_zero():
    module, _ = prepare_float(capture(randomize(MIDDLES["depthwise"]()), spec=SPEC), CONFIG)
    absorbed = {node.name for node in place(module, ONNXRUNTIME).absorbed}
    assert {"relu", "hardtanh"} <= absorbed
    assert place(module, TENSORRT).absorbed == ()
    assert {"relu", "hardtanh"} <= nodes_by_name(module).keys()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-4.0, 2.0), (0.0, 5.0), (0.0, 0.0)])
def test_signed_integers_hold_the_larger_end_and_zero(low, high):
    qparams = signed_qparams(low, high, 8)
    end = max(-low, high)
    values = torch.tensor([0.0, end, -end])
    torch.testing.assert_close(fake_quantize(values, qparams), values)
    assert (qparams.quant_min, qparams.quant_max, int(qparams.zero_point), qparams.bits) == (-128, 127, 0, 8)
    assert qparams.zero_point.dtype == torch.int8


def test_a_mirrored_histogram_counts_every_value_on_both_sides():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(3)).abs() * 2 - 0.5
    histogram = Histogram()
    histogram.observe(values)
    both = histogram.mirrored()
    assert (both.low, both.high) == (-float(values.max()), float(values.max()))
    assert float(both.counts.sum()) == 2 * len(values)
    torch.testing.assert_close(both.counts, both.counts.flip(0), rtol=0, atol=8)
    for end in (0.5, 1.0, 3.0):
        counted = float(both.counts[both.centers.abs() < end].sum()) / 2
        assert counted == pytest.approx(int((values.abs() < end).sum()), abs=40)
    assert minmax_range(both, 8, CONFIG) == (both.low, both.high)


def test_the_range_around_zero_is_the_one_with_the_least_error():
    values = torch.randn(20000, generator=torch.Generator().manual_seed(4)).relu()
    histogram = Histogram()
    histogram.observe(values)
    _, high = mse_range(histogram.mirrored(), 4, CONFIG)

    def error(end: float) -> float:
        return float((fake_quantize(values, signed_qparams(-end, end, 4)) - values).square().mean())

    tried = [error(float(values.max()) * share / 100) for share in range(20, 101)]
    assert error(high) <= 1.05 * min(tried)
    assert math.isfinite(high)


def test_a_mirrored_constant_has_a_range():
    histogram = Histogram()
    histogram.observe(torch.zeros(10))
    assert minmax_range(histogram.mirrored(), 8, CONFIG) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"target": "tensorrt", "bits": "W4A8"}, "weights of 4 bits; choose 8 or more"),
        ({"target": "tensorrt", "other_bits": 4}, "activations of 4 bits"),
        ({"target": "executorch", "first_last_bits": 6}, "weights of 6 bits"),
        ({"target": "executorch", "bits": "mixed", "budget": "bits=8", "activation_bits": 4}, "activations of 4 bits"),
        ({"target": "openvino", "bits": "W2A8"}, "weights of 2 bits; choose 3 or more"),
    ],
)
def test_widths_that_a_runtime_cannot_run_are_refused(options, what):
    with pytest.raises(InputError, match=f"{options['target']} cannot run {what}"):
        QuantizationConfig(**options)
