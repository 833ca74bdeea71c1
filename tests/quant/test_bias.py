import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig
from dffg.graph.captured import capture
from dffg.graph.fold import fold_with_records
from dffg.graph.nodes import Tap, stored_tensor
from dffg.quant.affine import dequantize
from dffg.quant.bias import correct_biases, expected_errors, measured_errors
from dffg.quant.decide import simulate
from dffg.quant.moments import batch_norm_moments
from dffg.quant.parameters import Parameters
from dffg.quant.placement import place, prepare
from dffg.quant.rounding import round_layers
from dffg.quant.widths import quantized_layers, uniform_widths
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, randomize

COARSE = QuantizationConfig(bits="W3A8")


def with_correction(choice):
    return QuantizationConfig(bits="W3A8", weight_rounding="nearest", bias_correction=choice)


def rounded(made, config=COARSE):
    """The folded float graph, its layers rounded, and what BatchNorm knows."""
    folded, records = fold_with_records(made)
    module = prepare(folded)
    layers = round_layers(module, uniform_widths(module, place(module), config), config)
    return module, Parameters(activations={}, layers=layers), batch_norm_moments(records)


def weights_of(module, parameters):
    """Float and rounded weight of every layer."""
    return {
        layer.name: (
            stored_tensor(module, layer.args[1]),
            dequantize(parameters.layers[layer.name].levels, parameters.layers[layer.name].qparams),
        )
        for layer in quantized_layers(module)
    }


@torch.no_grad()
def values_of(module, x):
    seen = {}
    Tap(module, lambda name, value: seen.setdefault(name, value)).run(x)
    return seen


def clipped_mean(mean, std, high):
    ends = [0.0, *([high] if math.isfinite(high) else [])]
    return integrate.quad(
        lambda x: min(max(x, 0), high) * stats.norm.pdf(x, mean, std), mean - 12 * std, mean + 12 * std, points=ends
    )[0]


def test_expected_errors_are_the_change_of_the_weight_at_the_mean_of_the_input():
    module, parameters, known = rounded(captured("conv"))
    errors = expected_errors(module, parameters, known)
    weights = weights_of(module, parameters)
    assert set(errors) == {"conv2d_1", "linear"}
    for name, source, high in (("conv2d_1", "conv2d", math.inf), ("linear", "conv2d_1", 6.0)):
        means = [clipped_mean(float(m), float(s), high) for m, s in zip(known[source].mean, known[source].std)]
        weight, levels = weights[name]
        expected = (levels - weight).flatten(2).sum(2) if weight.dim() > 2 else levels - weight
        assert torch.allclose(errors[name].float(), expected @ torch.tensor(means), atol=1e-5)
        assert errors[name].abs().max() > 1e-3


def test_expected_errors_see_through_depthwise_layers_and_not_past_what_is_unknown():
    module, parameters, known = rounded(captured("inverted-residual"))
    errors = expected_errors(module, parameters, known)
    assert list(errors) == ["conv2d_1", "conv2d_2", "conv2d_3", "linear"]
    weight, levels = weights_of(module, parameters)["conv2d_2"]
    means = [clipped_mean(float(m), float(s), 6.0) for m, s in zip(known["conv2d_1"].mean, known["conv2d_1"].std)]
    assert torch.allclose(errors["conv2d_2"].float(), (levels - weight).sum((1, 2, 3)) * torch.tensor(means), atol=1e-5)


def test_channels_of_padding_and_zero_borders_are_counted_right():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(6, 2, 3)

        def forward(self, x):
            return self.head(F.pad(self.bn(self.conv(x)), (0, 1, 0, 1, 1, 1)))

    module, parameters, known = rounded(capture(randomize(Padded()), spec=ImageSpec(shape=(3, 8, 8))))
    weight, levels = weights_of(module, parameters)["conv2d_1"]
    means = F.pad(known["conv2d"].mean.float(), (1, 1))
    expected = (levels - weight).sum((2, 3)) @ means
    assert torch.allclose(expected_errors(module, parameters, known)["conv2d_1"].float(), expected, atol=1e-5)


def test_a_linear_layer_over_another_axis_is_left_out():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.linear = nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x):
            return self.linear(self.bn(self.conv(x)))

    module, parameters, known = rounded(capture(randomize(Sequence()), spec=ImageSpec(shape=(2, 8))))
    assert known
    assert expected_errors(module, parameters, known) == {}
    assert set(measured_errors(module, parameters, [inputs((2, 8))])) == {"conv1d", "linear"}


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_errors_are_the_difference_of_each_layers_mean(name):
    """Every layer run twice on what it reads in the float network, with its float and with its rounded weight."""
    module, parameters, _ = rounded(captured(name))
    shape = NETWORKS[name][1]
    batches = [inputs(shape, 6, seed=1), inputs(shape, 2, seed=2)]
    errors = measured_errors(module, parameters, iter(batches))
    seen, weights = values_of(module, torch.cat(batches)), weights_of(module, parameters)
    assert set(errors) == set(parameters.layers)
    for layer in quantized_layers(module):
        x = seen[layer.args[0].name]
        before, after = (layer.target(x, weight, None, *layer.args[3:]) for weight in weights[layer.name])
        last = layer.name.startswith("linear")
        axes = tuple(range(x.dim() - 1)) if last else (0, *range(2, x.dim()))
        assert torch.allclose(errors[layer.name].float(), (after - before).mean(axes), atol=1e-5)


def test_correction_subtracts_the_errors_it_is_given():
    _, parameters, _ = rounded(captured("conv"))
    before = parameters.layers["conv2d"]
    corrected = correct_biases(parameters, {"conv2d": torch.arange(8, dtype=torch.float64)})
    assert torch.allclose(corrected.layers["conv2d"].bias, before.bias - torch.arange(8))
    assert corrected.layers["conv2d"].levels is before.levels
    assert corrected.layers["conv2d_1"] is parameters.layers["conv2d_1"]
    assert corrected.layers["conv2d"].bias.dtype == torch.float32
    assert parameters.layers["conv2d"] is before


def mean_errors(quantized, x):
    """Mean of |error of the mean| per layer, of the quantized against the float network."""
    answers, expected = values_of(quantized.module, x), values_of(quantized.float_module, x)
    return {
        layer.node: float((answers[layer.node] - expected[layer.node]).transpose(0, 1).flatten(1).mean(1).abs().mean())
        for layer in quantized.layers
    }


@pytest.mark.parametrize("name", ["conv", "residual", "inverted-residual", "volumes", "linear"])
def test_measured_correction_leaves_the_first_layer_no_error_of_the_mean(name):
    x = inputs(NETWORKS[name][1], 32, seed=3)
    plain, corrected = (simulate(captured(name), [x], with_correction(choice)) for choice in ("none", "empirical"))
    before, after = mean_errors(plain, x), mean_errors(corrected, x)
    first = next(iter(before))
    # The input is rounded too, which is not corrected.
    assert after[first] < 0.1 * before[first]
    assert sum(after.values()) < sum(before.values())


def test_expected_correction_lowers_the_errors_where_the_statistics_are_true():
    model = randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 4, 1),
        )
    )  # fmt: skip
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for layer in model:
        layer.momentum = None
    model.train()(x)
    spec = ImageSpec(shape=(3, 12, 12), bounds=(-5.0, 5.0))
    made = capture(model.eval(), spec=spec)
    plain, corrected = (mean_errors(simulate(made, [x], with_correction(choice)), x) for choice in ("none", "analytic"))
    assert corrected["conv2d_1"] < 0.5 * plain["conv2d_1"]
    assert corrected["conv2d_2"] < 0.5 * plain["conv2d_2"]


def test_a_layer_without_bias_is_given_one():
    model = randomize(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False)))
    made = capture(model, spec=ImageSpec(shape=(6,)))
    x = inputs((6,), 64)
    for choice in ("analytic", "empirical"):
        quantized = simulate(made, [x], with_correction(choice))
        assert quantized.module.get_buffer("linear_1_bias").dtype == torch.int32
        assert quantized.module.get_buffer("linear_1_bias").any()
    assert mean_errors(quantized, x)["linear_1"] < 0.2 * mean_errors(simulate(made, [x], COARSE), x)["linear_1"]
    assert F.mse_loss(quantized.module(x), model(x)) < F.mse_loss(simulate(made, [x], COARSE).module(x), model(x))
