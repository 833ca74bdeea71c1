"""Activation equalization: make every channel of a tensor fill the range that its tensor has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from dffg.graph.nodes import (
    LINEAR,
    argument,
    aten,
    calls,
    copy_module,
    groups_of,
    is_depthwise,
    is_stored,
    optional_tensor,
    weight_of,
)
from dffg.quant.affine import per_channel
from dffg.quant.equalize import cleaned, replace_stored, scaled_inputs
from dffg.quant.moments import FLATTENING, Moments, propagate
from dffg.quant.placement import MAX_POOLS, POOLS, clip_bounds, is_fused_padding
from dffg.quant.widths import quantized_layers

# What a channel reaches, in standard deviations: a normal distribution is above in 3 of 100,000 places.
_SIGMAS = 4
# A channel below this share of the largest is dead, or nearly so, and has nothing to gain.
_LEAST = 1 / 64
_DENSE_POWER = 0.5


@dataclass(eq=False, kw_only=True)
class TiedTensors:
    """Tensors whose channels must share one scale each, since elementwise operators join them.

    writers, readers: the layers around them, whose weights can take a channel's scale. movable: whether nothing else
    reads or writes them.
    """

    tensors: list[fx.Node] = field(default_factory=list)
    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    movable: bool = True

    def join(self, other: TiedTensors) -> None:
        """Take in everything that the other has."""
        self.tensors += other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.movable &= other.movable


def find_tied(module: fx.GraphModule) -> list[TiedTensors]:
    """The tensors of a folded and prepared graph whose channels can be scaled, by what ties them."""
    tied: dict[fx.Node, TiedTensors] = {}
    layers = set(quantized_layers(module))
    for node in module.graph.nodes:
        if node.op == "get_attr":
            continue
        own, sources = TiedTensors(tensors=[node]), [tied[source] for source in node.all_input_nodes if source in tied]
        if node in layers:
            own.writers.append(node)
            sources[0].readers.append(node)
        elif _keeps_channels(node):
            for group in dict.fromkeys(sources):
                own.join(group)
        else:
            for group in (own, *sources):
                group.movable = False
        for member in own.tensors:
            tied[member] = own
    found = list(dict.fromkeys(tied.values()))
    return [group for group in found if group.movable and group.readers and _same_channels(module, group)]


def _keeps_channels(node: fx.Node) -> bool:
    """Whether channel i of every input, and nothing else, decides channel i of the result, in proportion to it.

    A clip from 0 to a fixed value is counted, see `equalize_activations`.
    """
    if calls(node, aten.add.Tensor):
        operands = [operand for operand in node.args if isinstance(operand, fx.Node) and not is_stored(operand)]
        shapes = {operand.meta["val"].shape[1:] for operand in operands}
        return len(operands) == 2 and not node.kwargs and len(shapes) == 1
    if calls(node, *FLATTENING):
        first = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        return len(first) > 2 and math.prod(first[2:]) == 1 and node.meta["val"].shape[1:] == first[1:2]
    bounds = clip_bounds(node)
    rectifies = bounds is not None and bounds[0] == 0
    return rectifies or calls(node, *POOLS, *MAX_POOLS) or is_fused_padding(node)


def _same_channels(module: fx.GraphModule, group: TiedTensors) -> bool:
    """Channels on the second axis, and as many everywhere."""
    if any(calls(layer, LINEAR) and layer.meta["val"].dim() != 2 for layer in group.writers + group.readers):
        return False
    counts = {tensor.meta["val"].shape[1] for tensor in group.tensors}
    counts |= {weight_of(module, layer).shape[1] * groups_of(layer) for layer in group.readers}
    return len(counts) == 1


def equalize_activations(
    module: fx.GraphModule, known: Mapping[str, Moments]
) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """A copy of a folded and prepared graph whose channels are scaled up, and what each layer's result was divided by.

        W1[i] <- W1[i] / s_i      b1[i] <- b1[i] / s_i      W2[:, i] <- W2[:, i] * s_i
        s_i = (r_i / max r)^p,    r_i = largest |mean_i +- 4 std_i|, within what a ReLU or ReLU6 lets through

    for all layers that write (W1) and read (W2) tensors whose channels are tied. An activation has one scale per
    tensor, and channels far below the largest have few of its integers; a weight has one per channel, so that what is
    moved into W1, or into a depthwise W2, costs nothing there: p = 1. In other W2 channels compete: p = 0.5, as for
    transformers (SmoothQuant, Xiao et al., ICML 2023). Mean and deviation are what BatchNorm remembers (`known`, by
    node); tensors of which it says nothing stay.

    Channels are only scaled up, and not beyond 4 deviations: where values are normal, ReLU6 clips 3 more in 100,000.
    Where they are not, this changes the answer; `choose_equalization` finds that out.
    """
    module = copy_module(module)
    moments, scales = propagate(module, known), {}
    for group in find_tied(module):
        reach = _reach(module, group, moments)
        if reach is None:
            continue
        depthwise = all(is_depthwise(module, layer) for layer in group.readers)
        scale = (reach / reach.max()).clamp(min=_LEAST) ** (1.0 if depthwise else _DENSE_POWER)
        for layer in group.writers:
            _divide_result(module, layer, scale)
            scales[layer.name] = scale
        for layer in group.readers:
            _multiply_input(module, layer, scale)
    return cleaned(module), scales


def _reach(module: fx.GraphModule, group: TiedTensors, moments: Mapping[str, Moments]) -> Tensor | None:
    """What every channel reaches in the tensors that layers read; None where moments are missing."""
    sums = [node for node in group.tensors if calls(node, aten.add.Tensor)]
    needed = {layer.name for layer in group.writers} | {str(operand) for node in sums for operand in node.args}
    if not needed <= moments.keys():
        return None
    members, ends = set(group.tensors), dict[fx.Node, Tensor]()
    for node in module.graph.nodes:
        if node in members:
            ends[node] = _ends(node, ends, moments)
    read = [source for layer in group.readers for source in layer.all_input_nodes if source in members]
    reach = torch.stack([ends[source].abs().amax(0) for source in read]).amax(0)
    return reach if float(reach.max()) > 0 else None


def _ends(node: fx.Node, ends: Mapping[fx.Node, Tensor], moments: Mapping[str, Moments]) -> Tensor:
    """Lowest and highest value of every channel, (2, channels): 4 deviations from the mean where a layer writes."""
    operands = [ends[operand] for operand in node.args if isinstance(operand, fx.Node) and operand in ends]
    bounds = clip_bounds(node)
    if bounds is not None:
        return operands[0].clamp(*bounds)
    if not operands:
        found = moments[node.name]
        return found.mean + torch.tensor([[-_SIGMAS], [_SIGMAS]]) * found.std
    if not calls(node, aten.add.Tensor):
        return operands[0]
    means = [moments[operand.name].mean for operand in node.args]  # type: ignore[union-attr, index]
    first, second = (operand - mean for operand, mean in zip(operands, means))
    # Independent: what both reach above their mean adds up as deviations do.
    return sum(means) + torch.tensor([[-1.0], [1.0]]) * torch.hypot(first, second)


def _divide_result(module: fx.GraphModule, layer: fx.Node, scale: Tensor) -> None:
    weight, bias = weight_of(module, layer).double(), optional_tensor(module, argument(layer, 2))
    replace_stored(module, layer, 1, "divided_weight", weight / per_channel(scale, weight))
    if bias is not None:
        replace_stored(module, layer, 2, "divided_bias", bias / scale)


def _multiply_input(module: fx.GraphModule, layer: fx.Node, scale: Tensor) -> None:
    weight = scaled_inputs(weight_of(module, layer).double(), scale, groups_of(layer))
    replace_stored(module, layer, 1, "multiplied_weight", weight)
