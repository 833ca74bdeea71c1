"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.graph.batch_norms import BatchNorm, find_batch_norms
from dffg.graph.captured import Captured
from dffg.graph.nodes import (
    LINEAR,
    WEIGHTED,
    add_tensor,
    argument,
    calls,
    copy_module,
    is_stored,
    layer_name,
    optional_tensor,
    weight_of,
)


def fold_batch_norms(captured: Captured) -> fx.GraphModule:
    """A copy of the graph in which every foldable BatchNorm is part of the layer before it.

        weight' = weight * weight_bn / sd        bias' = (bias - running_mean) * weight_bn / sd + bias_bn

    per output channel, sd = sqrt(running_var + eps). A BatchNorm is folded when it is the only reader of a convolution
    or linear layer; others stay in the graph. A layer called twice gets folded weights of its own for every call.
    Computed in float64 and rounded once.
    """
    return fold_with_records(captured)[0]


@dataclass(frozen=True, kw_only=True)
class FoldRecord:
    """A BatchNorm and where to look at it now: the output of the layer it was folded into, else its own input."""

    norm: BatchNorm
    node: fx.Node
    folded: bool


def fold_with_records(captured: Captured) -> tuple[fx.GraphModule, list[FoldRecord]]:
    """As `fold_batch_norms`, with a record for every BatchNorm call in order of execution."""
    module = copy_module(captured.module)
    norms, records = find_batch_norms(module), []
    # Asked before anything is folded: the second of two BatchNorms in a row must not follow the first into the layer,
    # where that one is still looked at.
    for norm, foldable in [(norm, is_foldable(norm)) for norm in norms]:
        node = norm.input
        if foldable:
            _fold(module, norm)
        records.append(FoldRecord(norm=norm, node=node, folded=foldable))
    module.graph.eliminate_dead_code()
    module.recompile()
    return module, records


def is_foldable(norm: BatchNorm) -> bool:
    """Whether the layer before feeds this BatchNorm alone, with channels on the axis that BatchNorm normalizes."""
    layer = norm.input
    if not calls(layer, *WEIGHTED) or len(layer.users) != 1 or not is_stored(layer.args[1]):
        return False
    bias, value = argument(layer, 2), layer.meta.get("val")
    # A linear layer puts its channels last, which is BatchNorm's axis 1 only for matrices.
    channels_second = not calls(layer, LINEAR) or not isinstance(value, Tensor) or value.dim() == 2
    return channels_second and (bias is None or is_stored(bias))


def folded_parameters(module: fx.GraphModule, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer before, with the BatchNorm folded in."""
    layer = norm.input
    weight = weight_of(module, layer).double()
    bias = optional_tensor(module, argument(layer, 2))
    ratio = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        ratio = ratio * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    folded_bias = shift * ratio + (0.0 if norm.bias is None else norm.bias.double())
    return (weight * ratio.reshape(-1, *[1] * (weight.dim() - 1))).float(), folded_bias.float()


def _fold(module: fx.GraphModule, norm: BatchNorm) -> None:
    weight, bias = folded_parameters(module, norm)
    layer = norm.input
    # The name of the layer's module is kept as a prefix: it is what the user knows the layer by.
    layer.meta["dffg_name"] = layer_name(layer)
    name = layer.name
    rest = layer.args[3:]
    layer.args = (
        layer.args[0],
        add_tensor(module, f"{name}_folded_weight", weight.to(memory_format=_format(weight))),
        add_tensor(module, f"{name}_folded_bias", bias),
        *rest,
    )
    norm.node.replace_all_uses_with(layer)
    module.graph.erase_node(norm.node)


def _format(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format
