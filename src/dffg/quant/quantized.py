"""Build the quantized graph: the float graph with integers written into it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count

import torch
from torch import Tensor, fx

from dffg.graph.ends import JOIN
from dffg.graph.nodes import add_tensor, calls, copy_module, gives_floats, layer_name
from dffg.quant.affine import QParams, bias_qparams, per_channel, quantize, weight_qparams, widen_for_bias
from dffg.quant.in_float import float_operations
from dffg.quant.mixed import MixedPrecision
from dffg.quant.operators import DEQUANTIZE, QUANTIZE
from dffg.quant.parameters import LayerParameters, Parameters
from dffg.quant.placement import integer_inputs, place
from dffg.quant.widths import input_tensor, quantized_layers


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One call of a convolution or linear layer: its name for people, its node, and the node that carries its result.

    name: that of the module, with a number where it is called again, such as conv (2): no two are equal.
    weight_bits and activation_bits: of its weight and of its input. input_range: what the input's integers represent.
    """

    name: str
    node: str
    result: str
    weight_bits: int
    activation_bits: int
    input_range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One quantized activation: its node in the float graph, and its integers and their value in the quantized one."""

    name: str
    levels: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network with integers in it, executable in torch; `module` holds exactly what is exported.

    float_module: the same network, folded, in float, with the same node names. tensors: in order of execution, one for
    every QUANTIZE call of `module`. float_operations: what is computed in float, and why. mixed: how the widths were
    chosen, where they were.
    """

    module: fx.GraphModule
    float_module: fx.GraphModule
    tensors: tuple[QuantizedTensor, ...]
    layers: tuple[QuantizedLayer, ...]
    float_operations: dict[str, str]
    mixed: MixedPrecision | None = None


def insert(float_module: fx.GraphModule, parameters: Parameters) -> Quantized:
    """Write scales, zero points and integer weights into a copy of the graph."""
    module = copy_module(float_module)
    placement = place(module, parameters.target)
    in_float = float_operations(module, placement, parameters.target)
    layers: list[QuantizedLayer] = []
    for node in quantized_layers(module):
        layer, input_qparams = parameters.layers[node.name], parameters.activations[input_tensor(node, placement).name]
        layers.append(_describe(node, layer.qparams, input_qparams, {before.name for before in layers}))
        _write_layer(module, node, layer, input_qparams.scale if parameters.target.integer_biases else None)
    inserter = _ActivationInserter(module, parameters.activations)
    tensors = tuple(inserter.insert(node, source.name) for node, source in placement.source.items())
    for node in placement.absorbed:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return Quantized(
        module=module,
        float_module=float_module,
        tensors=tensors,
        layers=tuple(layers),
        float_operations=in_float,
    )


def _describe(node: fx.Node, weight: QParams, input: QParams, taken: Collection[str]) -> QuantizedLayer:
    return QuantizedLayer(
        name=_free_name(node.meta.get("dffg_name", layer_name(node)), taken),
        node=node.name,
        result=_carrier(node).name,
        weight_bits=weight.bits,
        activation_bits=input.bits,
        input_range=input.range,
    )


def _free_name(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name} ({call})" for call in count(2))
    return next(candidate for candidate in chain([name], numbered) if candidate not in taken)


def _carrier(node: fx.Node) -> fx.Node:
    """What alone reads a layer's result, where that goes on with it as one tensor; else the layer itself."""
    if len(node.users) != 1:
        return node
    (user,) = node.users
    ends = integer_inputs(user) or user.op == "output" or calls(user, JOIN) or not gives_floats(user)
    return node if ends else user


class _ActivationInserter:
    """Puts QUANTIZE and DEQUANTIZE behind tensors; tensors with one range share the stored scale."""

    def __init__(self, module: fx.GraphModule, activations: dict[str, QParams]) -> None:
        self._module = module
        self._qparams = activations
        self._stored: dict[str, tuple[fx.Node, fx.Node]] = {}

    def insert(self, node: fx.Node, source: str) -> QuantizedTensor:
        scale, zero_point = self._store(source)
        qparams = self._qparams[source]
        graph = self._module.graph
        with graph.inserting_after(node):
            levels = graph.call_function(QUANTIZE, (node, scale, zero_point, qparams.quant_min, qparams.quant_max))
        with graph.inserting_after(levels):
            value = graph.call_function(DEQUANTIZE, (levels, scale, zero_point))
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not levels)
        return QuantizedTensor(name=node.name, levels=levels.name, value=value.name)

    def _store(self, source: str) -> tuple[fx.Node, fx.Node]:
        if source not in self._stored:
            qparams = self._qparams[source]
            self._stored[source] = (
                add_tensor(self._module, f"{source}_scale", qparams.scale),
                add_tensor(self._module, f"{source}_zero_point", qparams.zero_point),
            )
        return self._stored[source]


def _write_layer(module: fx.GraphModule, node: fx.Node, layer: LayerParameters, input_scale: Tensor | None) -> None:
    """Integers of weight and bias; without the scale of the input the bias stays in float."""
    qparams, levels = layer.qparams, layer.levels
    if layer.bias is not None and input_scale is not None:
        scale = widen_for_bias(qparams.scale, input_scale, layer.bias)
        levels = torch.where(per_channel(scale > qparams.scale, levels), _rescaled(layer, scale), levels)
        qparams = weight_qparams(scale, qparams.bits)
    weight = _store(module, weight_name(node.name), levels, qparams, node)
    # Correction may have given a bias to a layer that had none.
    arguments = [node.args[0], weight, None, *node.args[3:]]
    if layer.bias is not None:
        arguments[2] = _write_bias(module, node, layer.bias, input_scale, qparams.scale)
    node.args = tuple(arguments)


def _write_bias(
    module: fx.GraphModule, node: fx.Node, bias: Tensor, input_scale: Tensor | None, weight_scale: Tensor
) -> fx.Node:
    name = f"{node.name}_bias"
    if input_scale is None:
        return add_tensor(module, name, bias)
    qparams = bias_qparams(input_scale, weight_scale)
    # int32 holds more digits than float32.
    return _store(module, name, quantize(bias.double(), qparams), qparams, node)


def weight_name(node: str) -> str:
    """Name under which the integers of a layer's weight are stored, in the graph and in the file."""
    return f"{node}_weight"


def _rescaled(layer: LayerParameters, scale: Tensor) -> Tensor:
    ratio = per_channel(layer.qparams.scale / scale, layer.levels)
    return (layer.levels * ratio).round_().to(layer.levels.dtype)


def _store(module: fx.GraphModule, name: str, levels: Tensor, qparams: QParams, user: fx.Node) -> fx.Node:
    stored = add_tensor(module, name, levels.contiguous())
    scale = add_tensor(module, f"{name}_scale", qparams.scale)
    zero_point = add_tensor(module, f"{name}_zero_point", qparams.zero_point)
    with module.graph.inserting_before(user):
        return module.graph.call_function(DEQUANTIZE, (stored, scale, zero_point, qparams.axis))
