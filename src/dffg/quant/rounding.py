"""The integers of every weight."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from dffg.config import QuantizationConfig
from dffg.graph.nodes import argument, optional_tensor, weight_of
from dffg.quant.affine import QParams, quantize, weight_qparams
from dffg.quant.parameters import LayerParameters
from dffg.quant.ranges import WEIGHT_RANGES
from dffg.quant.squant import squant
from dffg.quant.widths import BitWidths, quantized_layers

WEIGHT_ROUNDINGS: dict[str, Callable[[Tensor, QParams], Tensor]] = {"nearest": quantize, "squant": squant}


def round_layers(module: fx.GraphModule, widths: BitWidths, config: QuantizationConfig) -> dict[str, LayerParameters]:
    """Integers of every weight, by `config.weight_rounding` and `config.weight_ranges`; no data is needed."""
    return {
        layer.name: _round_layer(module, layer, widths.weights[layer.name], config)
        for layer in quantized_layers(module)
    }


def _round_layer(module: fx.GraphModule, layer: fx.Node, bits: int, config: QuantizationConfig) -> LayerParameters:
    weight = weight_of(module, layer)
    qparams = weight_qparams(WEIGHT_RANGES[config.weight_ranges](weight, bits, config), bits)
    levels = WEIGHT_ROUNDINGS[config.weight_rounding](weight, qparams)
    return LayerParameters(levels=levels, qparams=qparams, bias=optional_tensor(module, argument(layer, 2)))
