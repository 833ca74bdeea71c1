import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.quant.decide import look, simulate
from dffg.quant.mixed import evenly_chosen, layer_sizes, pose
from dffg.quant.placement import place, prepare
from dffg.quant.sensitivity import FloatRun
from dffg.quant.widths import input_tensor, quantized_layers
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, randomize


def mixed(name, *, reduce_range=False, **options):
    images = [inputs(NETWORKS[name][1], 8, seed=seed) for seed in (1, 2)]
    config = QuantizationConfig(bits="mixed", reduce_range=reduce_range, **options)
    return simulate(captured(name), iter(images), config)


def posed(name, count=8, **options):
    config = QuantizationConfig(bits="mixed", **options)
    return pose(look(captured(name), [inputs(NETWORKS[name][1], count, seed=1)], config), config)


@pytest.mark.parametrize(
    "name", ["conv", "inverted-residual", "linear", "volumes", "after-concat", "shared", "sequence"]
)
def test_sizes_are_those_of_torch(name):
    """A multiplication and an addition are two of torch's operations."""
    module = prepare(fold_batch_norms(captured(name)))
    sizes = layer_sizes(module, place(module))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs(NETWORKS[name][1], 1))
    assert sum(size.macs for size in sizes) == counter.get_total_flops() / 2
    weights = dict(module.state_dict())
    nodes = {node.name: node for node in module.graph.nodes}
    assert [size.parameters for size in sizes] == [weights[nodes[size.weight].args[1].target].numel() for size in sizes]


@pytest.mark.parametrize("sensitivity", ["kl", "sqnr"])
@pytest.mark.parametrize(("budget", "limit"), [("size=0.4x", 0.4), ("bits=3.5", 3.5), ("bops=0.2x", 0.2)])
def test_the_quantized_network_keeps_within_the_budget(budget, limit, sensitivity):
    quantized = mixed("inverted-residual", budget=budget, sensitivity=sensitivity)
    sizes = {size.weight: size for size in posed("inverted-residual", budget="bits=8", sensitivity="sqnr").layers}
    bits = {layer.node: (layer.weight_bits, layer.activation_bits) for layer in quantized.layers}
    parameters = {name: sizes[name].parameters for name in bits}
    if budget.startswith("size"):
        spent = sum(parameters[name] * {2: 2, 4: 4, 8: 8}[weight] for name, (weight, _) in bits.items())
        spent /= 8 * sum(parameters.values())
    elif budget.startswith("bits"):
        spent = sum(parameters[name] * weight for name, (weight, _) in bits.items()) / sum(parameters.values())
    else:
        spent = sum(sizes[name].macs * weight * activation for name, (weight, activation) in bits.items())
        spent /= 64 * sum(size.macs for size in sizes.values())
    assert quantized.mixed.chosen.cost == pytest.approx(spent)
    assert 0.8 * limit < spent <= limit
    assert len({weight for weight, _ in bits.values()}) > 1
    assert len({activation for _, activation in bits.values()}) > (1 if budget.startswith("bops") else 0)


def test_the_integers_have_the_chosen_widths():
    quantized = mixed("inverted-residual", budget="bits=3.5")
    for layer in quantized.layers:
        bits = quantized.mixed.widths.weights[layer.node]
        levels = quantized.module.get_buffer(f"{layer.node}_weight")
        assert layer.weight_bits == bits
        assert -(2 ** (bits - 1)) <= levels.amin() < 0 < levels.amax() <= 2 ** (bits - 1) - 1
        assert levels.abs().amax() >= 2 ** (bits - 1) - 1


def test_activations_that_the_budget_does_not_choose_have_the_width_that_is_given():
    def widths(**options):
        quantized = mixed("residual", **options)
        placement = place(quantized.float_module)
        read = {input_tensor(layer, placement).name for layer in quantized_layers(quantized.float_module)}
        return quantized.mixed.widths.activations, read

    bits, read = widths(budget="size=0.5x", activation_bits=6, other_bits=7)
    assert bits == {name: 6 if name in read else 7 for name in bits}
    bits, read = widths(budget="bops=0.1x", other_bits=7)
    assert {width for name, width in bits.items() if name not in read} == {7}
    assert all(width != 7 for name, width in bits.items() if name in read)


def test_only_the_candidates_are_chosen():
    for candidates in ("3,7", "5", "2,8"):
        widths = mixed("inverted-residual", budget="bops=0.9x", candidate_bits=candidates).mixed.widths
        assert set(widths.weights.values()) <= set(map(int, candidates.split(",")))


@pytest.mark.parametrize("budget", ["size=0.6x", "bops=0.5x"])
def test_outer_layers_keep_a_width_that_is_given(budget):
    quantized = mixed("inverted-residual", budget=budget, first_last_bits=8)
    first, *middle, last = quantized.layers
    assert (first.weight_bits, first.activation_bits, last.weight_bits, last.activation_bits) == (8, 8, 8, 8)
    assert {layer.weight_bits for layer in middle} != {8}
    with pytest.raises(InputError, match="the smallest possible is"):
        mixed("inverted-residual", budget="size=0.25x", first_last_bits=8)
    assert mixed("inverted-residual", budget="size=0.25x").mixed.chosen.cost == pytest.approx(0.25, abs=0.01)


def test_chosen_widths_keep_within_the_reduced_range():
    options = {"budget": "size=0.8x", "candidate_bits": "4,8"}
    wide, narrow = (mixed("inverted-residual", reduce_range=choice, **options).layers for choice in (False, True))
    assert {layer.weight_bits for layer in wide} == {4, 8}
    assert {4, 7} <= {layer.weight_bits for layer in narrow} <= {4, 7, 8}


def test_sensitivities_are_measured_on_the_given_number_of_images_from_the_whole_stream():
    images = torch.arange(10)
    assert evenly_chosen(images, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_chosen(images, 4).tolist() == [0, 2, 5, 7]
    assert evenly_chosen(images, 99).tolist() == images.tolist()
    few, many = (posed("conv", budget="bits=4", sensitivity_images=count).weights for count in (2, 8))
    assert few != many
    assert posed("conv", budget="bits=4", sensitivity_images=8).weights == many


def test_calibration_ranges_are_those_of_the_whole_stream():
    """Mixed bits read the stream twice: a generator must not run dry in between."""
    uniform = simulate(captured("conv"), [inputs((3, 8, 8), 8, seed=seed) for seed in (1, 2)])
    quantized = mixed("conv", budget="bits=4")
    names = [f"{tensor.name}_scale" for tensor in uniform.tensors]
    stored = [name for name, _ in uniform.module.named_buffers() if name in names]
    assert len(stored) > 2
    for name in stored:
        assert torch.equal(quantized.module.get_buffer(name), uniform.module.get_buffer(name))


def test_an_impossible_budget_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.delattr(FloatRun, "__init__")
    with pytest.raises(InputError, match=r"the smallest possible is size=0\.25\d*x"):
        mixed("residual", budget="size=0.2x")
    with pytest.raises(TypeError, match="FloatRun"):
        mixed("residual", budget="size=0.6x")


def test_no_calibration_images_are_an_error():
    with pytest.raises(InputError, match="no calibration images"):
        simulate(captured("conv"), [], QuantizationConfig(bits="mixed", budget="bits=4"))


def test_mixed_widths_answer_better_than_one_width_of_the_same_size():
    """One layer of a few weights is made to matter: 4 bits in it harm most, and its width costs next to nothing."""
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 64, 3), nn.Flatten())
    )
    network, images = capture(model, spec=ImageSpec(shape=(3, 8, 8))), inputs((3, 8, 8), 16)
    noises = {}
    for bits, options in (("W4A8", {}), ("mixed", {"budget": "bits=4.1", "sensitivity": "sqnr"})):
        quantized = simulate(network, [images], QuantizationConfig(bits=bits, **options))
        with torch.no_grad():
            noises[bits] = float((quantized.module(images) - model(images)).square().mean())
    assert noises["mixed"] < 0.8 * noises["W4A8"]
