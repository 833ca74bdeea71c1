import pytest
from torch import nn

from dffg.config import QuantizationConfig
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import is_depthwise
from dffg.quant import widths as rules
from dffg.quant.placement import place, prepare
from dffg.quant.widths import (
    input_tensor,
    quantized_layers,
    reduced,
    stored_bits,
    uniform_widths,
    with_known_range,
)
from dffg.spec import ImageSpec
from tests.networks import captured, randomize


def widths_of(name, **options):
    module = prepare(fold_batch_norms(captured(name)))
    placement = place(module)
    return module, placement, uniform_widths(module, placement, QuantizationConfig(**options))


def read_by_layers(module, placement):
    return {input_tensor(layer, placement).name for layer in quantized_layers(module)}


@pytest.mark.parametrize("name", ["conv", "inverted-residual", "residual"])
def test_every_layer_has_the_width_of_the_scheme_and_the_rest_a_width_of_its_own(name):
    module, placement, widths = widths_of(name, bits="W3A5", other_bits=7)
    assert widths.weights == {layer.name: 3 for layer in quantized_layers(module)}
    assert widths.activations.keys() == {source.name for source in placement.source.values()}
    assert {name for name, bits in widths.activations.items() if bits == 5} == read_by_layers(module, placement)
    assert set(widths.activations.values()) == {5, 7}


@pytest.mark.parametrize(("name", "result"), [("conv", "relu"), ("inverted-residual", "hardtanh")])
def test_outer_layers_have_weights_and_inputs_of_another_width_and_the_first_its_result(name, result):
    module, placement, widths = widths_of(name, bits="W3A5", first_last_bits=6, other_bits=7)
    first, *middle, last = quantized_layers(module)
    assert [widths.weights[layer.name] for layer in (first, last)] == [6, 6]
    assert all(widths.weights[layer.name] == 3 for layer in middle)
    outer = {input_tensor(layer, placement).name for layer in (first, last)}
    assert len(outer) == 2
    outer.add(result)
    assert {name for name, bits in widths.activations.items() if bits == 6} == outer
    assert {name for name, bits in widths.activations.items() if bits == 5} == read_by_layers(module, placement) - outer


class Stem(nn.Module):
    """As networks begin: pooled, or with an activation that has no integer kernel."""

    def __init__(self, activation: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.activation, self.pool = activation, pool
        self.second, self.third, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        x = self.pool(self.activation(self.norm(self.first(x))))
        return self.last(self.third(self.second(x) + x)).mean((2, 3))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardswish(), nn.SiLU()])
@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_the_first_result_is_wide_up_to_the_next_layer(activation, pool):
    network = capture(randomize(Stem(activation, pool)), spec=ImageSpec(shape=(3, 8, 8)))
    module = prepare(fold_batch_norms(network))
    placement = place(module)
    widths = uniform_widths(module, placement, QuantizationConfig(bits="W4A4", first_last_bits=6, other_bits=7))
    _, second, third, last = quantized_layers(module)
    assert widths.activations[input_tensor(second, placement).name] == 6
    bits = [widths.activations[input_tensor(layer, placement).name] for layer in (second, third, last)]
    assert bits == [6, 4, 6]
    assert widths.activations[second.name] == 7


def test_widths_are_stored_in_the_narrowest_type_that_holds_them():
    assert [stored_bits(bits) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("activation_bits", range(2, 9))
def test_two_products_fit_into_16_bits_with_as_many_bits_as_can_be(weight_bits, activation_bits):
    module, placement, widths = widths_of("conv", bits=f"W{weight_bits}A{activation_bits}")
    largest = 2**activation_bits - 1
    found = reduced(widths, module, placement).weights
    assert found
    for bits in found.values():
        assert bits == weight_bits or 2 * 2**bits * largest > 2**15
        assert 2 * 2 ** (bits - 1) * largest < 2**15


def test_depthwise_layers_keep_8_bits_and_activations_theirs():
    module, placement, widths = widths_of("inverted-residual")
    narrow = reduced(widths, module, placement)
    depthwise = [is_depthwise(module, layer) for layer in quantized_layers(module)]
    assert set(depthwise) == {True, False}
    assert list(narrow.weights.values()) == [8 if each else 7 for each in depthwise]
    assert narrow.activations == widths.activations


@pytest.mark.parametrize("overflows", [True, False])
@pytest.mark.parametrize(("target", "asks"), [("onnxruntime", True), ("openvino", True), ("torch", False)])
def test_the_range_of_weights_is_what_the_processor_needs_where_nobody_chose(monkeypatch, target, asks, overflows):
    monkeypatch.setattr(rules, "adds_in_16_bits", lambda: overflows)
    known = with_known_range(QuantizationConfig(target=target))
    assert known.reduce_range is (overflows and asks)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_chosen_range_stays(monkeypatch, chosen):
    monkeypatch.setattr(rules, "adds_in_16_bits", lambda: not chosen)
    assert with_known_range(QuantizationConfig(reduce_range=chosen)).reduce_range is chosen
