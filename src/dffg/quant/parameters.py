"""What quantization decides about a network: integers, scales and zero points, before they are written into a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from dffg.config import QuantizationConfig
from dffg.graph.nodes import argument, optional_tensor, weight_of
from dffg.quant.affine import QParams, quantize, weight_qparams
from dffg.quant.ranges import WEIGHT_RANGES
from dffg.quant.squant import squant
from dffg.quant.widths import BitWidths, quantized_layers
from dffg.targets import ONNXRUNTIME, Target

WEIGHT_ROUNDINGS: dict[str, Callable[[Tensor, QParams], Tensor]] = {"nearest": quantize, "squant": squant}


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """Integers of a layer's weight with their scales, and its bias, still in float."""

    levels: Tensor
    qparams: QParams
    bias: Tensor | None

    def on(self, device: torch.device) -> LayerParameters:
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return LayerParameters(levels=self.levels.to(device), qparams=self.qparams.on(device), bias=bias)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """activations: by the tensor whose range is used; layers: by node. Every step of quantization makes new ones.

    target: the runtime whose rules say which tensors these are.
    """

    activations: dict[str, QParams]
    layers: dict[str, LayerParameters]
    target: Target = ONNXRUNTIME

    def on(self, device: torch.device) -> Parameters:
        """The same on a device."""
        activations = {name: qparams.on(device) for name, qparams in self.activations.items()}
        layers = {name: layer.on(device) for name, layer in self.layers.items()}
        return replace(self, activations=activations, layers=layers)


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
