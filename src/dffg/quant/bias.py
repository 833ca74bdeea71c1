"""Bias correction: rounded weights move the mean of a layer's result, and its bias can move it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from dffg.graph import LINEAR, Tap, calls, stored_tensor
from dffg.quant.affine import dequantize
from dffg.quant.moments import Moments, groups_of, propagate, response
from dffg.quant.parameters import LayerParameters, Parameters
from dffg.quant.placement import before_padding
from dffg.quant.widths import quantized_layers


def correct_biases(parameters: Parameters, errors: Mapping[str, Tensor]) -> Parameters:
    """bias <- bias - error, for every layer with a known error of the mean of its result, (channels,).

    A layer without bias is given one; it costs an addition, which integer kernels do anyway.
    """
    layers = {name: _corrected(layer, errors.get(name)) for name, layer in parameters.layers.items()}
    return replace(parameters, layers=layers)


def _corrected(layer: LayerParameters, error: Tensor | None) -> LayerParameters:
    if error is None:
        return layer
    bias = -error.double() if layer.bias is None else layer.bias.double() - error.double()
    return replace(layer, bias=bias.float())


def expected_errors(module: fx.GraphModule, parameters: Parameters, known: Mapping[str, Moments]) -> dict[str, Tensor]:
    """What rounding adds to the mean of every layer's result, without data: (W_q - W) E[x], by node.

    E[x] per input channel is carried from the BatchNorms before (`known`, by node of the folded float graph; see
    `propagate`). Layers whose input it does not reach, such as the first, are left out. Source: Nagel et al., ICCV
    2019, section 4.2. Borders, which zero padding makes darker than E[x], count as the rest, as they do there.
    """
    moments = propagate(module, known)
    errors = {}
    for layer in quantized_layers(module):
        source = before_padding(layer.args[0])  # type: ignore[arg-type]
        if source.name in moments and _has_channels_second(layer, source):
            rounded = dequantize(parameters.layers[layer.name].levels, parameters.layers[layer.name].qparams)
            change = rounded.double() - stored_tensor(module, layer.args[1]).double()  # type: ignore[arg-type]
            errors[layer.name] = response(change, moments[source.name].mean, groups_of(layer))
    return errors


def _has_channels_second(layer: fx.Node, source: fx.Node) -> bool:
    """Moments are per axis 1, which a linear layer reads only from matrices."""
    return not calls(layer, LINEAR) or source.meta["val"].dim() == 2


def measured_errors(
    float_module: fx.GraphModule, rounded: fx.GraphModule, parameters: Parameters, images: Iterable[Tensor]
) -> dict[str, Tensor]:
    """What quantization adds to the mean of every layer's result over images, by node.

        error = mean over images and positions of (result of the quantized layer - result of the float layer)

    Layers are visited in order of execution, and each is corrected before the next one reads it, so that a later error
    is what is left after the earlier corrections; errors of activations and borders are seen too. One pass through both
    networks: the quantized one with all images as one batch, because a layer needs the mean over all of them before
    the next can run. Source: Nagel et al., ICCV 2019, appendix.
    """
    batches = list(images)
    expected = _result_means(float_module, parameters, batches)
    errors: dict[str, Tensor] = {}
    axes = _channel_axes(rounded, parameters)

    def visit(name: str, value: Any) -> Any:
        if name not in axes:
            return value
        errors[name] = _mean(value, axes[name]) - expected[name]
        return value - _along(errors[name].float(), axes[name], value.dim())

    with torch.no_grad():
        Tap(rounded, visit).run(torch.cat(batches))
    return errors


def _result_means(module: fx.GraphModule, parameters: Parameters, batches: list[Tensor]) -> dict[str, Tensor]:
    """Mean of every layer's result over all images and positions, per channel, in float64."""
    axes = _channel_axes(module, parameters)
    sums: dict[str, Tensor] = {}

    def visit(name: str, value: Any) -> Any:
        if name in axes:
            sums[name] = sums.get(name, 0.0) + len(value) * _mean(value, axes[name])
        return value

    with torch.no_grad():
        for batch in batches:
            Tap(module, visit).run(batch)
    count = sum(map(len, batches))
    return {name: total / count for name, total in sums.items()}


def _channel_axes(module: fx.GraphModule, parameters: Parameters) -> dict[str, int]:
    """Which axis of a layer's result has one bias per index."""
    return {
        node.name: -1 if calls(node, LINEAR) else 1 for node in module.graph.nodes if node.name in parameters.layers
    }


def _mean(value: Tensor, axis: int) -> Tensor:
    return value.movedim(axis, 0).flatten(1).double().mean(1)


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)
