from dataclasses import replace

import pytest
import torch
from torch import nn

from dffg.config import QuantizationConfig, Rates
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import aten, calls
from dffg.quant.affine import QParams, dequantize, fake_quantize, quantize, weight_qparams
from dffg.quant.blocks import find_blocks
from dffg.quant.calibrate import choose_ranges, observe, observed_tensors
from dffg.quant.learned import (
    LearnedActivation,
    LearnedBias,
    LearnedWeight,
    anneal,
    confine_weights,
    learning_optimizer,
    random_mask,
    where_rounded,
    where_weight_is,
)
from dffg.quant.learned_network import LearnedNetwork
from dffg.quant.parameters import LayerParameters, Parameters
from dffg.quant.placement import place, prepare
from dffg.quant.quantized import insert
from dffg.quant.rounding import round_layers
from dffg.quant.widths import uniform_widths
from tests.networks import NETWORKS, captured, inputs

STARTS = (where_weight_is, where_rounded)


def layer_of(weight, scale, bits=4):
    qparams = weight_qparams(scale, bits)
    return LayerParameters(levels=quantize(weight, qparams), qparams=qparams, bias=None)


def some_layer():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return weight, layer_of(weight, torch.full((5,), 0.21))


def decided(name, bits="W4A4"):
    """The float module of a test network and nearest parameters."""
    config = QuantizationConfig(bits=bits, weight_rounding="nearest")
    network = captured(name)
    module = prepare(fold_batch_norms(network))
    placement = place(module)
    widths = uniform_widths(module, placement, config)
    images = [inputs(NETWORKS[name][1], 16, seed=1)]
    seen = observe(module, observed_tensors(placement), images)
    activations = choose_ranges(seen, placement, network.spec, widths, config)
    return module, Parameters(activations=activations, layers=round_layers(module, widths, config))


def test_a_weight_starts_on_its_nearest_integers_with_the_gradient_of_the_formula():
    """Oracle: scale * integers, whose derivatives are the scale and, summed over a channel, the weight itself."""
    weight, layer = some_layer()
    learned = LearnedWeight(where_weight_is(weight, layer), layer.qparams)
    assert torch.equal(learned.levels(), layer.levels)
    assert torch.equal(learned().detach(), dequantize(layer.levels, layer.qparams))
    factor = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (learned() * factor).sum().backward()
    torch.testing.assert_close(learned.position.grad, 0.21 * factor)
    torch.testing.assert_close(
        learned.stretch.grad, (dequantize(layer.levels, layer.qparams) * factor).flatten(1).sum(1)
    )


def test_a_weight_starts_beside_the_threshold_where_it_is_rounded_the_other_way():
    weight, layer = some_layer()
    other = replace(layer, levels=(layer.levels + 1).clamp(max=7))
    position = where_weight_is(weight, other)
    learned = LearnedWeight(position, layer.qparams)
    assert torch.equal(learned.levels(), other.levels)
    kept = (weight / 0.21 - other.levels).abs() < 0.49
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(position[kept], weight[kept] / 0.21)


def test_a_weight_can_start_in_the_middle_of_its_steps_and_go_to_any():
    weight, layer = some_layer()
    learned = LearnedWeight(where_rounded(weight, layer), layer.qparams)
    assert torch.equal(learned.position.detach(), layer.levels.float())
    learned().sum().backward()
    torch.testing.assert_close(learned.position.grad, torch.full_like(weight, 0.21))
    with torch.no_grad():
        learned.position.add_(100)
        learned.stretch.fill_(0.1)
    assert (learned.levels() == 7).all()
    torch.testing.assert_close(learned.qparams().scale, torch.full((5,), 0.21 * 2.718281828**0.1))
    torch.testing.assert_close(learned().detach(), dequantize(learned.levels(), learned.qparams()))


def test_each_kind_of_variable_has_its_rate():
    module, parameters = decided("conv")
    network = LearnedNetwork(module, parameters, where_rounded)
    optimizer = learning_optimizer(network.module, Rates(weight=1.0, scale=0.1, bias=0.01))
    rates = {id(value): group["rate"] for group in optimizer.param_groups for value in group["params"]}
    assert all(rates[id(weight.position)] == 1.0 for weight in network.weights.values())
    assert all(rates[id(weight.stretch)] == 0.1 for weight in network.weights.values())
    assert all(rates[id(module.stretch)] == 0.1 for module in network.activations.values())
    assert all(rates[id(bias.shift)] == 0.01 for bias in network.biases.values())
    assert network.biases
    assert len(rates) == 2 * len(network.weights) + len(network.activations) + len(network.biases)


@pytest.mark.parametrize("zero_point", [0, 5])
def test_an_activation_is_fake_quantized_as_in_the_simulation(zero_point):
    x = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    qparams = QParams(
        scale=torch.tensor(0.3), zero_point=torch.tensor(zero_point, dtype=torch.uint8), quant_min=0, quant_max=15
    )
    learned = LearnedActivation(qparams, 0.5).eval()
    torch.testing.assert_close(learned(x).detach(), fake_quantize(x, qparams))


def test_gradients_of_an_activation_are_those_of_autograd_through_the_formula():
    """Oracle: the textbook expression with a straight-through rounding, differentiated by torch."""
    x = (2 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    weight = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    qparams = QParams(scale=torch.tensor(0.3), zero_point=torch.tensor(5, dtype=torch.uint8), quant_min=0, quant_max=15)
    learned = LearnedActivation(qparams, 0.0)
    (learned(x) * weight).sum().backward()
    scale = torch.tensor(0.3, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    position = (copy / scale).clamp(-5, 10)
    ((position + (position.round() - position).detach()) * scale * weight).sum().backward()
    torch.testing.assert_close(x.grad, copy.grad)
    torch.testing.assert_close(learned.stretch.grad, scale.grad * 0.3)


def test_while_learning_a_share_of_an_activation_stays_as_it_is():
    x = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    qparams = QParams(scale=torch.tensor(0.3), zero_point=torch.tensor(5, dtype=torch.uint8), quant_min=0, quant_max=15)
    learned = LearnedActivation(qparams, 0.25)
    torch.manual_seed(0)
    answer = learned(x).detach()
    kept = answer == x
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(answer[~kept], fake_quantize(x, qparams)[~kept])


def test_gradients_where_a_share_stays_are_those_of_the_choice_by_element():
    x = (2 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    weight = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    qparams = QParams(scale=torch.tensor(0.3), zero_point=torch.tensor(5, dtype=torch.uint8), quant_min=0, quant_max=15)
    learned = LearnedActivation(qparams, 0.5)
    answer = learned(x)
    (answer * weight).sum().backward()
    stays = (answer == x).detach()
    assert 0.2 < float(stays.float().mean()) < 0.8
    scale = torch.tensor(0.3, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    position = (copy / scale).clamp(-5, 10)
    quantized = (position + (position.round() - position).detach()) * scale
    (torch.where(stays, copy, quantized) * weight).sum().backward()
    torch.testing.assert_close(x.grad, copy.grad)
    torch.testing.assert_close(learned.stretch.grad, scale.grad * 0.3)


def test_a_limit_holds_whatever_is_learned():
    qparams = QParams(scale=torch.tensor(0.4), zero_point=torch.tensor(0, dtype=torch.uint8), quant_min=0, quant_max=15)
    learned = LearnedActivation(qparams, 0.0, 6.0)
    with torch.no_grad():
        learned.stretch.fill_(3.0)
    assert learned.qparams().range[1] <= 6.0
    assert float(learned(torch.tensor([[7.0]])).detach()) <= 6.0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mask_has_its_share_and_the_shape_of_its_tensor(layout):
    torch.manual_seed(0)
    like = torch.empty(3, 5, 17, 19).to(memory_format=layout)
    mask = random_mask(like, 0.5)
    assert mask.shape == like.shape
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(mask, random_mask(like, 0.5))


def test_an_activation_leaves_its_share_as_it_is_while_it_learns():
    qparams = QParams(scale=torch.tensor(1.0), zero_point=torch.tensor(0, dtype=torch.uint8), quant_min=0, quant_max=15)
    learned = LearnedActivation(qparams, drop=0.25)
    torch.manual_seed(0)
    x = torch.rand(40, 50) * 10
    assert float((learned(x) == x).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(learned.eval()(x), x.round())


def test_a_bias_moves_by_its_spread():
    bias = torch.tensor([3.0, -4.0])
    learned = LearnedBias(bias)
    assert torch.equal(learned().detach(), bias)
    with torch.no_grad():
        learned.shift.fill_(1.0)
    torch.testing.assert_close(learned().detach(), bias + 12.5**0.5)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_learned_nothing_decides_what_it_was_given(name, start):
    module, parameters = decided(name)
    answer = LearnedNetwork(module, parameters, start, 0.5).parameters()
    assert answer.activations.keys() == parameters.activations.keys()
    for tensor, qparams in parameters.activations.items():
        assert torch.equal(answer.activations[tensor].scale, qparams.scale)
        assert torch.equal(answer.activations[tensor].zero_point, qparams.zero_point)
    for node, layer in parameters.layers.items():
        assert torch.equal(answer.layers[node].levels, layer.levels)
        assert torch.equal(answer.layers[node].qparams.scale, layer.qparams.scale)
        assert (answer.layers[node].bias is None) == (layer.bias is None)
        assert layer.bias is None or torch.equal(answer.layers[node].bias, layer.bias)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_in_a_row_answer_what_the_quantized_network_does(name):
    """What is learned in is what is exported: the same values but for the rounding of biases to int32."""
    module, parameters = decided(name, "W4A8")
    network = LearnedNetwork(module, parameters, where_rounded, 0.5)
    x = inputs(NETWORKS[name][1], 8, seed=2)
    with torch.no_grad():
        expected = insert(module, parameters).module(x)
        blocks = find_blocks(module)
        value = network.quantized(blocks[0].input, x)
        for block in blocks:
            value = network.block(block.input, block.output).eval()(value)
    assert float((value - expected).square().mean()) < 5e-4 * float(expected.square().mean())


def test_steps_shrink_along_half_a_cosine():
    module, parameters = decided("conv")
    network = LearnedNetwork(module, parameters, where_rounded)
    optimizer = learning_optimizer(network.module, Rates(weight=1.0, scale=0.1, bias=0.01))
    for progress, share in ((0.0, 1.0), (0.5, 0.5), (2 / 3, 0.25), (1.0, 0.0)):
        anneal(optimizer, progress)
        lengths = [group["lr"] for group in optimizer.param_groups]
        assert lengths == pytest.approx([share * rate for rate in (1.0, 0.1, 0.01)])


@pytest.mark.parametrize("reach", [0.0, 1.0])
def test_a_confined_weight_stays_near_its_start(reach):
    weight = torch.tensor([[0.3, -0.3, 2.0]])
    learned = LearnedWeight(weight, weight_qparams(torch.ones(1), 4), reach)
    for direction, ends in ((-1, [0.0, -1.0, 2.0]), (1, [1.0, 0.0, 3.0])):
        with torch.no_grad():
            learned.position.add_(direction * 50)
        confine_weights(nn.ModuleList([learned]))
        expected = torch.tensor([ends]) + direction * reach
        assert torch.equal(learned.position.detach(), expected)


@pytest.mark.parametrize("name", ["conv", "inverted-residual"])
def test_scales_behind_a_relu6_never_learn_more_than_six(name):
    """Saturation stands for the ReLU6 in the file, so that a wider range would change the network."""
    module, parameters = decided(name)
    network = LearnedNetwork(module, parameters, where_rounded)
    with torch.no_grad():
        for activation in network.activations.values():
            activation.stretch.fill_(4.0)
    learned, clipped = network.parameters().activations, 0
    for node in place(module).absorbed:
        if calls(node, aten.hardtanh.default, aten.relu6.default):
            assert learned[node.name].range[1] <= 6.0
            clipped += 1
    assert clipped
    assert any(qparams.range[1] > 6.0 for qparams in learned.values())


def test_a_state_that_was_taken_does_not_go_on_learning():
    network = LearnedNetwork(*decided("conv"), where_rounded)
    state = network.state()
    before = {name: value.clone() for name, value in state.items()}
    # What is not learned belongs to the float network, which other tests have, too.
    with torch.no_grad():
        for learned in network.weights.values():
            learned.position.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert not all(torch.equal(value, before[name]) for name, value in network.state().items())
