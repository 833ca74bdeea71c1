import pytest

from dffg.config import QuantizationConfig
from dffg.fold import fold_batch_norms
from dffg.quant.placement import place, prepare
from dffg.quant.widths import input_tensor, quantized_layers, stored_bits, uniform_widths
from tests.networks import captured


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


@pytest.mark.parametrize("name", ["conv", "inverted-residual"])
def test_outer_layers_have_weights_and_inputs_of_another_width(name):
    module, placement, widths = widths_of(name, bits="W3A5", first_last_bits=6, other_bits=7)
    first, *middle, last = quantized_layers(module)
    assert [widths.weights[layer.name] for layer in (first, last)] == [6, 6]
    assert all(widths.weights[layer.name] == 3 for layer in middle)
    outer = {input_tensor(layer, placement).name for layer in (first, last)}
    assert len(outer) == 2
    assert {name for name, bits in widths.activations.items() if bits == 6} == outer
    assert {name for name, bits in widths.activations.items() if bits == 5} == read_by_layers(module, placement) - outer


def test_widths_are_stored_in_the_narrowest_type_that_holds_them():
    assert [stored_bits(bits) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]
