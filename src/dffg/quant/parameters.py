"""What quantization decides about a network: integers, scales and zero points, before they are written into a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dffg.quant.affine import QParams
from dffg.targets import ONNXRUNTIME, Target


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
