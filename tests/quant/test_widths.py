import pytest

from dffg.config import QuantizationConfig
from dffg.fold import fold_batch_norms
from dffg.quant.placement import place, prepare
from dffg.quant.widths import input_tensor, quantized_layers, uniform_widths
from tests.networks import captured


def widths_of(name, **options):
    module = prepare(fold_batch_norms(captured(name)))
    placement = place(module)
    return module, placement, uniform_widths(module, placement, QuantizationConfig(**options))


@pytest.mark.parametrize("name", ["conv", "inverted-residual"])
def test_every_layer_and_tensor_has_the_width_of_the_scheme(name):
    module, placement, widths = widths_of(name, bits="W3A5")
    assert widths.weights == {layer.name: 3 for layer in quantized_layers(module)}
    assert widths.activations == {source.name: 5 for source in placement.source.values()}


@pytest.mark.parametrize("name", ["conv", "inverted-residual"])
def test_outer_layers_have_weights_and_inputs_of_another_width(name):
    module, placement, widths = widths_of(name, bits="W3A5", first_last_bits=8)
    first, *middle, last = quantized_layers(module)
    assert [widths.weights[layer.name] for layer in (first, last)] == [8, 8]
    assert all(widths.weights[layer.name] == 3 for layer in middle)
    outer = {input_tensor(layer, placement).name for layer in (first, last)}
    assert len(outer) == 2
    assert {name for name, bits in widths.activations.items() if bits == 8} == outer
    assert set(widths.activations.values()) == {5, 8}
