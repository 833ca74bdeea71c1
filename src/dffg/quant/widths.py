"""How many bits every weight and every activation gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from dffg.config import QuantizationConfig
from dffg.graph.nodes import WEIGHTED, calls, groups_of, is_depthwise, weight_of
from dffg.machine.processor import adds_in_16_bits
from dffg.quant.placement import POOLS, Placement, before_padding, integer_inputs

_STORED_BITS = (2, 4, 8)
# Of a weight and an activation together: 2 * 2^(w-1) * (2^a - 1) fits into 16 bits with their sign.
PAIR_BITS = 15
REDUCED_BITS = PAIR_BITS - 8


@dataclass(frozen=True, kw_only=True)
class BitWidths:
    """weights: by layer node; activations: by the tensor whose range is used (`Placement.source`)."""

    weights: dict[str, int]
    activations: dict[str, int]


def stored_bits(bits: int) -> int:
    """Bits that a weight of this width takes in a file: the narrowest type of ONNX that holds it."""
    return next(stored for stored in _STORED_BITS if bits <= stored)


def quantized_layers(module: fx.GraphModule) -> list[fx.Node]:
    """Convolutions and linear layers that are quantized, in order of execution."""
    return [node for node in module.graph.nodes if calls(node, *WEIGHTED) and integer_inputs(node)]


def input_tensor(layer: fx.Node, placement: Placement) -> fx.Node:
    """The tensor whose scale a layer's input has."""
    return placement.source[before_padding(layer.args[0])]  # type: ignore[arg-type]


def result_tensors(layer: fx.Node, placement: Placement) -> set[str]:
    """The tensors whose scale has what a layer gives, through activations and pooling, to whoever computes with it."""
    found, ahead = set(), [layer]
    while ahead:
        node = ahead.pop()
        if node in placement.source:
            found.add(placement.source[node].name)
        ahead += [user for user in node.users if not integer_inputs(user) or calls(user, *POOLS)]
    return found


def uniform_widths(module: fx.GraphModule, placement: Placement, config: QuantizationConfig) -> BitWidths:
    """The same width for the weight and the input of every layer.

    `first_last_bits`, where given, is that of the first and the last layer in order of execution, and of what the first
    one gives: the convention of BRECQ (Li et al., ICLR 2021); QDrop (Wei et al., ICLR 2022) leaves the first result
    narrow. `other_bits` is that of activations that no layer reads, which BRECQ and its successors leave in float: here
    they are integers too, and 8 bits cost no more than fewer. What a layer reads as well has a copy for it by then
    (`copies.py`). A reduced range takes one bit of 8-bit weights (`reduced`).
    """
    layers = quantized_layers(module)
    weights = {layer.name: config.scheme.weight_bits for layer in layers}
    activations = {source.name: config.other_bits for source in placement.source.values()}
    activations |= {input_tensor(layer, placement).name: config.scheme.activation_bits for layer in layers}
    if config.first_last_bits is not None:
        for layer in layers[:1] + layers[-1:]:
            weights[layer.name] = config.first_last_bits
            activations[input_tensor(layer, placement).name] = config.first_last_bits
        for layer in layers[:1]:
            activations |= dict.fromkeys(result_tensors(layer, placement), config.first_last_bits)
    widths = BitWidths(weights=weights, activations=activations)
    return reduced(widths, module, placement) if config.reduce_range else widths


def with_known_range(config: QuantizationConfig) -> QuantizationConfig:
    """The configuration with `reduce_range` as this processor needs it, where it was left open."""
    if config.reduce_range is not None:
        return config
    return replace(config, reduce_range=config.rules.adds_pairs and adds_in_16_bits())


def reduced(widths: BitWidths, module: fx.GraphModule, placement: Placement) -> BitWidths:
    """Weights of so few bits that two products fit into 16, with any input: 7 where both have 8.

    Convolutions with a channel in and out in every group keep theirs: their kernels add one product at a time.
    """
    weights = dict(widths.weights)
    for layer in quantized_layers(module):
        if not _adds_alone(module, layer):
            most = PAIR_BITS - widths.activations[input_tensor(layer, placement).name]
            weights[layer.name] = min(weights[layer.name], most)
    return replace(widths, weights=weights)


def _adds_alone(module: fx.GraphModule, layer: fx.Node) -> bool:
    return is_depthwise(module, layer) and len(weight_of(module, layer)) == groups_of(layer)
