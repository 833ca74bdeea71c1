from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.captured import capture
from dffg.graph.nodes import WEIGHTED, Tap, calls
from dffg.quant.decide import choose_equalization, decide, prepare_float, simulate
from dffg.quant.operators import DEQUANTIZE, QUANTIZE
from dffg.quant.stored import tensors_of
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, dead_channels, inputs, network, randomize, small_conv

SPEC = ImageSpec(shape=(3, 8, 8))


@cache
def simulated(name, bits="W8A8", ranges="mse", weights="mse", rounding="squant"):
    options = QuantizationConfig(
        bits=bits,
        other_bits=int(bits[-1]),
        activation_ranges=ranges,
        weight_ranges=weights,
        weight_rounding=rounding,
        bias_correction="none" if rounding == "nearest" else "analytic",
        reduce_range=False,
    )
    return simulate(captured(name), [inputs(NETWORKS[name][1], 16, seed=1)], options)


@torch.no_grad()
def sqnr(name, bits):
    """Signal to quantization noise of the answer, in dB."""
    model, shape = network(name)
    x = inputs(shape, 16)
    expected = model(x)
    return float(
        10 * torch.log10(expected.square().sum() / (simulated(name, bits).module(x) - expected).square().sum())
    )


def stored(module, node):
    return dict(module.named_buffers())[str(node.target)]


def values_of(module, x):
    """Every named result of a graph."""
    values = {}
    with torch.no_grad():
        Tap(module, lambda name, value: values.setdefault(name, value)).run(x)
    return values


def nodes_of(quantized, *targets):
    return [node for node in quantized.module.graph.nodes if calls(node, *targets)]


@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits_are_close_to_float(name):
    assert sqnr(name, "W8A8") > 28


@pytest.mark.parametrize("name", ["conv", "inverted-residual", "linear", "volumes", "shared"])
def test_fewer_bits_are_worse(name):
    levels = [sqnr(name, bits) for bits in ("W8A8", "W6A6", "W4A4", "W2A2")]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > levels[2] + 5


def test_weights_and_activations_have_widths_of_their_own():
    for bits, weight_bits, activation_bits in (("W4A8", 4, 8), ("W8A4", 8, 4)):
        quantized = simulated("inverted-residual", bits)
        assert all(node.args[4] == 2**activation_bits - 1 for node in nodes_of(quantized, QUANTIZE))
        for node in nodes_of(quantized, *WEIGHTED):
            levels = stored(quantized.module, node.args[1].args[0])
            assert levels.amin() >= -(2 ** (weight_bits - 1))
            assert levels.amax() <= 2 ** (weight_bits - 1) - 1
            assert levels.abs().max() >= 2 ** (weight_bits - 1) - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_computes_from_integers(name):
    quantized = simulated(name)
    layers = nodes_of(quantized, *WEIGHTED)
    assert [layer.node for layer in quantized.layers] == [node.name for node in layers]
    for node in layers:
        assert all(calls(argument, DEQUANTIZE) for argument in node.args[:3])
        assert calls(node.args[0].args[0], QUANTIZE)
        assert stored(quantized.module, node.args[1].args[0]).dtype == torch.int8
        assert stored(quantized.module, node.args[2].args[0]).dtype == torch.int32
        scales = [stored(quantized.module, argument.args[1]) for argument in node.args[:3]]
        assert torch.equal(scales[2], scales[0] * scales[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_are_the_quantized_ones_in_order_of_execution(name):
    quantized = simulated(name)
    nodes = {node.name: node for node in quantized.module.graph.nodes}
    assert [tensor.levels for tensor in quantized.tensors] == [node.name for node in nodes_of(quantized, QUANTIZE)]
    order = [node.name for node in quantized.float_module.graph.nodes]
    assert sorted(order.index(tensor.name) for tensor in quantized.tensors) == [
        order.index(tensor.name) for tensor in quantized.tensors
    ]
    assert all(nodes[tensor.value].args[0] is nodes[tensor.levels] for tensor in quantized.tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_quantized_value_is_near_the_float_value_of_its_name(name):
    quantized, x = simulated(name), inputs(NETWORKS[name][1], 16, seed=1)
    seen, expected = values_of(quantized.module, x), values_of(quantized.float_module, x)
    assert quantized.tensors
    for tensor in quantized.tensors:
        away = (seen[tensor.value] - expected[tensor.name]).norm()
        assert away < 0.05 * expected[tensor.name].norm()


def test_the_float_module_is_the_float_network():
    model, shape = network("inverted-residual")
    x = inputs(shape)
    assert torch.allclose(simulated("inverted-residual").float_module(x), model(x), rtol=1e-4, atol=1e-5)


def torchs_own(x, quantized, tensor):
    node = next(node for node in quantized.module.graph.nodes if node.name == tensor.levels)
    scale, zero_point = (stored(quantized.module, argument) for argument in node.args[1:3])
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), *node.args[3:5])


@torch.no_grad()
def test_the_whole_simulation_is_torchs_fake_quantization_around_each_layer():
    """`small_conv` written out; ReLU and ReLU6 are applied here, and left to saturation there."""
    model, shape = network("conv")
    quantized, x = simulated("conv", weights="minmax", rounding="nearest"), inputs(shape, 16)
    first, second, third, pooled, flat = quantized.tensors
    layers = []
    for convolution, norm in ((model[0], model[1]), (model[3], model[4]), (model[8], None)):
        factor = 1.0 if norm is None else norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = convolution.weight * (1.0 if norm is None else factor.reshape(-1, 1, 1, 1))
        bias = 0 if convolution.bias is None else convolution.bias
        bias = bias if norm is None else (bias - norm.running_mean) * factor + norm.bias
        scale = weight.flatten(1).abs().amax(1) / 127
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        layers.append((torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -128, 127), bias))
    y = torchs_own(x, quantized, first)
    y = torchs_own(F.relu(F.conv2d(y, *layers[0], padding=1)), quantized, second)
    y = torchs_own(F.relu6(F.conv2d(y, *layers[1], stride=2, padding=1)), quantized, third)
    y = torchs_own(torchs_own(y.mean((2, 3)), quantized, pooled), quantized, flat)
    expected = F.linear(y, *layers[2])
    # Rounding on ties may differ, which moves few answers by about one step of one input.
    assert torch.isclose(quantized.module(x), expected, atol=1e-4).float().mean() > 0.8
    assert (quantized.module(x) - expected).abs().max() < 0.02


def test_the_range_of_the_input_is_its_bounds():
    model = randomize(small_conv())
    made = capture(model, spec=ImageSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,), bounds=(-1.0, 2.0)))
    quantized = simulate(made, [0.1 * inputs((3, 8, 8))])
    node = nodes_of(quantized, QUANTIZE)[0]
    scale, zero_point = (stored(quantized.module, argument) for argument in node.args[1:3])
    assert float(scale) == pytest.approx(12 / 255)
    assert int(zero_point) == round(6 / (12 / 255))


def test_the_range_of_a_flattened_input_is_its_bounds_too():
    made = captured("linear")
    quantized = simulate(made, [0.1 * inputs((1, 8, 8))])
    scale = stored(quantized.module, nodes_of(quantized, QUANTIZE)[0].args[1])
    assert float(scale) == pytest.approx(1 / 255)


@pytest.mark.parametrize("name", ["conv", "residual", "inverted-residual", "after-concat"])
def test_minmax_ranges_are_the_extremes_of_the_float_network_over_all_batches(name):
    shape = NETWORKS[name][1]
    batches = [inputs(shape, 4, seed=1), 0.2 * inputs(shape, 3, seed=2)]
    quantized = simulate(captured(name), iter(batches), QuantizationConfig(activation_ranges="minmax"))
    first, second = (values_of(quantized.float_module, batch) for batch in batches)
    checked = 0
    for tensor, node in zip(quantized.tensors, nodes_of(quantized, QUANTIZE), strict=True):
        scale = stored(quantized.module, node.args[1])
        if str(node.args[1].target) == f"{tensor.name}_scale" and tensor is not quantized.tensors[0]:
            values = torch.cat([first[tensor.name].flatten(), second[tensor.name].flatten()])
            width = float(values.max().clamp(min=0) - values.min().clamp(max=0))
            assert float(scale) == pytest.approx(width / 255, rel=1e-4)
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize(("activation", "ends"), [(nn.Identity(), (2.0, 2.0)), (nn.ReLU(), (0.0, 2.0))])
def test_an_answer_has_twice_the_range_that_was_seen(activation, ends):
    model, shape = network("conv")
    model.append(activation)
    seen = inputs(shape, 16, seed=1)
    found = simulate(capture(model, spec=SPEC), [seen], QuantizationConfig(target="executorch"))
    tensor = found.tensors[-1]
    scale, zero_point = (float(getattr(found.module, f"{tensor.name}_{part}")) for part in ("scale", "zero_point"))
    with torch.no_grad():
        answer = model(seen)
    for level, factor, end in ((0, ends[0], answer.min()), (255, ends[1], answer.max())):
        assert scale * (level - zero_point) == pytest.approx(factor * float(end), abs=0.51 * scale)


def test_an_answer_that_is_clipped_has_no_more_range_than_the_clip():
    model, shape = network("conv")
    model.extend([nn.ReLU6()])
    seen = inputs(shape, 16, seed=1) * 100
    found = simulate(capture(model, spec=SPEC), [seen], QuantizationConfig(target="executorch"))
    scale = float(getattr(found.module, f"{found.tensors[-1].name}_scale"))
    assert scale == pytest.approx(6 / 255)


def test_the_chosen_ranges_are_used():
    scales = {}
    for ranges in ("minmax", "percentile", "mse"):
        quantized = simulated("conv", "W4A4", ranges)
        scales[ranges] = float(stored(quantized.module, nodes_of(quantized, QUANTIZE)[1].args[1]))
    assert len(set(scales.values())) == 3
    assert scales["minmax"] == max(scales.values())
    weights = [
        stored(
            simulated("conv", "W4A8", "mse", choice).module,
            nodes_of(simulated("conv", "W4A8", "mse", choice), *WEIGHTED)[0].args[1].args[1],
        )
        for choice in ("minmax", "mse")
    ]
    assert (weights[1] <= weights[0]).all()
    assert (weights[1] < weights[0]).any()


def test_tensors_with_one_range_share_one_scale():
    quantized = simulated("after-pool")
    names = {tensor.levels: tensor.name for tensor in quantized.tensors}
    scale_of = {names[node.name]: (node.args[1], node.args[2]) for node in nodes_of(quantized, QUANTIZE)}
    assert scale_of["max_pool2d"] == scale_of["conv2d"]
    assert scale_of["input_1"] != scale_of["conv2d"]


def test_pooling_in_a_shared_range_adds_no_rounding():
    quantized, x = simulated("after-pool"), inputs((3, 8, 8))
    seen = values_of(quantized.module, x)
    values = {tensor.name: seen[tensor.value] for tensor in quantized.tensors}
    assert torch.equal(values["max_pool2d"], F.max_pool2d(values["conv2d"], 2))


@pytest.mark.parametrize("name", ["conv", "residual", "residual-inplace", "inverted-residual", "volumes"])
def test_relu_is_left_to_saturation(name):
    def activations(module):
        called = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        return [target for target in called if "relu" in target or "hardtanh" in target]

    assert activations(simulated(name).float_module)
    assert not activations(simulated(name).module)


@pytest.mark.parametrize("name", ["conv", "residual", "inverted-residual", "after-pool", "linear"])
def test_the_last_layer_answers_in_float(name):
    quantized = simulated(name)
    assert calls(quantized.module.graph.output_node().args[0], *WEIGHTED)


def test_layers_carry_the_names_people_know():
    names = [layer.name for layer in simulated("inverted-residual").layers]
    assert names == ["stem.0", "block.0", "block.3", "block.6", "head.3"]
    results = [layer.result for layer in simulated("inverted-residual").layers]
    assert results == ["hardtanh", "hardtanh_1", "hardtanh_2", "conv2d_3", "linear"]


def test_what_stays_in_float_is_named():
    assert list(simulated("after-pool").float_operations) == ["batch_norm (batch_norm)", "conv2d_1 (conv2d)"]
    assert simulated("conv").float_operations == {}


@pytest.mark.parametrize("weights", ["minmax", "mse"])
def test_dead_channels_keep_their_bias(weights):
    model, x = dead_channels(), inputs((3, 8, 8))
    made = capture(model, spec=SPEC)
    assert made.zero_variance_channels == 2
    quantized = simulate(made, [x], QuantizationConfig(weight_ranges=weights))
    seen = values_of(quantized.module, x)
    step = float(stored(quantized.module, nodes_of(quantized, QUANTIZE)[1].args[1]))
    hidden = seen[next(tensor.value for tensor in quantized.tensors if tensor.name == "relu")]
    assert (hidden[:, 0] - 1.5).abs().max() <= 0.51 * step
    assert (hidden[:, 3] - 0.7).abs().max() <= 0.51 * step
    assert torch.allclose(quantized.module(x), model(x), atol=0.05)


def test_biases_are_rounded_in_double_precision():
    model = dead_channels()
    with torch.no_grad():
        model.head.weight *= 1e-5
    config = QuantizationConfig(reduce_range=False, bias_correction="none")
    quantized = simulate(capture(model, spec=SPEC), [inputs((3, 8, 8))], config)
    floats = [node for node in quantized.float_module.graph.nodes if calls(node, *WEIGHTED)]
    for node, other in zip(nodes_of(quantized, *WEIGHTED), floats, strict=True):
        levels, scale = (stored(quantized.module, argument).numpy() for argument in node.args[2].args[:2])
        bias = quantized.float_module.state_dict()[str(other.args[2].target)].numpy()
        assert (levels == np.rint(bias.astype(np.float64) / scale.astype(np.float64))).all()


def test_calibration_images_are_read_once_and_one_batch_is_enough():
    stream = iter([inputs((3, 8, 8))])
    quantized = simulate(captured("conv"), stream)
    assert next(stream, None) is None
    assert quantized.module(inputs((3, 8, 8), 2)).shape == (2, 5)


def test_no_calibration_images_are_an_error():
    with pytest.raises(InputError, match="no calibration images"):
        simulate(captured("conv"), [])


def test_simulation_does_not_change_the_capture():
    made = captured("conv")
    before = {key: value.clone() for key, value in made.module.state_dict().items()}
    simulate(made, [inputs((3, 8, 8))])
    assert made.module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in made.module.state_dict().items())


def test_quantized_weights_are_not_far_from_the_folded_ones():
    quantized = simulated("inverted-residual")
    floats = [node for node in quantized.float_module.graph.nodes if calls(node, *WEIGHTED)]
    for node, other in zip(nodes_of(quantized, *WEIGHTED), floats, strict=True):
        levels, scale, *_ = node.args[1].args
        levels, scale = (stored(quantized.module, value) for value in (levels, scale))
        weight = dict(quantized.float_module.state_dict())[str(other.args[1].target)]
        step = scale.reshape(-1, *[1] * (weight.dim() - 1))
        assert ((levels * step - weight).abs() / step).mean() < 0.3


def test_a_bias_may_be_missing_and_a_linear_layer_may_come_first():
    model = randomize(nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)))
    x = inputs((6,), 16)
    quantized = simulate(capture(model, spec=ImageSpec(shape=(6,))), [x])
    assert len(quantized.layers) == 2
    assert (quantized.module(x) - model(x)).norm() < 0.03 * model(x).norm()


ALL_PARTS = {
    "equalize": "weights",
    "absorb_biases": True,
    "weight_rounding": "squant",
    "bias_correction": "analytic",
    "weight_ranges": "lp",
    "activation_ranges": "lp",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_parts_together_are_close_to_float(name):
    model, shape = network(name)
    x = inputs(shape, 16)
    quantized = simulate(captured(name), [inputs(shape, 16, seed=1)], QuantizationConfig(**ALL_PARTS))
    expected = model(x).detach()
    assert torch.allclose(quantized.float_module(x), expected, rtol=1e-3, atol=1e-4)
    assert (quantized.module(x) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(("part", "choice"), ALL_PARTS.items())
def test_every_part_is_switched_by_its_option_and_off_by_default(part, choice):
    images = [inputs((1, 8, 8), 16, seed=1)]
    made = capture(high_bias(), spec=ImageSpec(shape=(1, 8, 8)))
    plain, changed = (
        read_by(simulate(made, images, QuantizationConfig(**{"bits": "W3A3", "norm": 1.0, **OFF, **part_of})).module)
        for part_of in ({}, {part: choice})
    )
    touched = {name for name, value in plain.items() if not torch.equal(value, changed[name])}
    assert touched
    if part == "weight_rounding":
        assert all(key.endswith("_weight") for key in touched)
    if part == "bias_correction":
        assert touched == {"linear_1_bias"}
    if part == "activation_ranges":
        assert not any(key.endswith("_weight") for key in touched)


OFF = {"equalize": "none", "weight_rounding": "nearest", "bias_correction": "none"}


def read_by(module):
    return {str(node.target): stored(module, node) for node in module.graph.nodes if node.op == "get_attr"}


def high_bias():
    """`linear_norm` with a channel that is positive in nearly all images."""
    model, _ = network("linear")
    with torch.no_grad():
        model[2].bias[3] = 6.0
    return model


def test_squant_rounds_the_weights_that_are_written():
    quantized = simulate(captured("conv"), [inputs((3, 8, 8))], QuantizationConfig(bits="W4A8", **ROUNDED))
    floats = [node for node in quantized.float_module.graph.nodes if calls(node, *WEIGHTED)]
    for node, other in zip(nodes_of(quantized, *WEIGHTED), floats, strict=True):
        levels, scale = (stored(quantized.module, value).double() for value in node.args[1].args[:2])
        weight = quantized.float_module.state_dict()[str(other.args[1].target)].double()
        errors = levels.flatten(1) - weight.flatten(1) / scale.unsqueeze(1)
        assert errors.sum(1).abs().max() <= 0.5 + 1e-4
        assert errors.abs().max() > 0.51


ROUNDED = {"weight_rounding": "squant", "weight_ranges": "minmax"}


def test_empirical_correction_takes_a_stream_of_images_too():
    stream = iter([inputs((3, 8, 8)), inputs((3, 8, 8), seed=1)])
    options = QuantizationConfig(bits="W3A8", bias_correction="empirical")
    streamed = simulate(captured("conv"), stream, options).module.state_dict()
    listed = simulate(captured("conv"), [inputs((3, 8, 8)), inputs((3, 8, 8), seed=1)], options).module.state_dict()
    assert all(torch.equal(value, listed[key]) for key, value in streamed.items())


def test_statistics_follow_the_equalized_channels():
    """Analytic correction after equalization is that of the equalized network, not of the original one."""
    options = QuantizationConfig(bits="W3A8", equalize="weights", bias_correction="analytic")
    module, moments = prepare_float(captured("conv"), options)
    plain, known = prepare_float(captured("conv"), QuantizationConfig())
    x = inputs((3, 8, 8), 8)
    ratio = values_of(plain, x)["conv2d"].mean((0, 2, 3)) / values_of(module, x)["conv2d"].mean((0, 2, 3))
    assert torch.allclose(moments["conv2d"].mean.float() * ratio, known["conv2d"].mean.float(), rtol=1e-3)
    assert not torch.allclose(moments["conv2d"].mean, known["conv2d"].mean, rtol=1e-2)


@pytest.mark.parametrize(("share", "expected"), [(1.0, "activations"), (0.01, "none")])
def test_ranges_are_evened_out_where_that_is_nearer_to_float(share, expected):
    """Channels of a hundredth of the largest, read with large weights, gain. Where BatchNorm remembers a hundredth of
    the variance that there is, ReLU6 would clip what is larger."""
    model, shape = network("inverted-residual")
    norm, depthwise = model.block[1], model.block[3]
    images = inputs(shape, 64, seed=1)
    with torch.no_grad():
        seen = model.block[0](model.stem(images))
        norm.running_mean.copy_(seen.mean((0, 2, 3)))
        norm.running_var.copy_(share * seen.var((0, 2, 3)))
        norm.weight.copy_(torch.logspace(-2, 0, 16) if expected == "activations" else torch.linspace(0.02, 2.0, 16))
        norm.bias.zero_()
        depthwise.weight.div_(norm.weight.reshape(-1, 1, 1, 1))
    made = capture(model, spec=ImageSpec(shape=shape))
    batches = list(torch.split(images, 16))
    assert choose_equalization(made, batches, QuantizationConfig(bits="W4A4")) == expected
    assert decide(made, batches, QuantizationConfig(bits="W4A4")).equalized == expected
    assert decide(made, batches, QuantizationConfig(bits="W4A8")).equalized == "none"


def test_what_is_decided_is_the_same_on_a_device():
    before = decide(captured("conv"), [inputs((3, 16, 16), 4)], QuantizationConfig()).parameters
    after = before.on(torch.device("cpu"))
    assert after.target == before.target
    assert all(layer.bias is not None for layer in before.layers.values())
    one, other = tensors_of(before), tensors_of(after)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
