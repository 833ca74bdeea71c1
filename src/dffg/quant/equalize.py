"""Cross-layer equalization: trade scale between consecutive layers so that no channel is far from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from dffg.graph.nodes import (
    CONVOLUTIONS,
    LINEAR,
    add_tensor,
    argument,
    calls,
    copy_module,
    groups_of,
    layer_name,
    optional_tensor,
    weight_of,
)
from dffg.quant.affine import per_channel
from dffg.quant.moments import Moments, response
from dffg.quant.placement import clip_bounds, integer_inputs, is_fused_padding
from dffg.quant.widths import quantized_layers

_SWEEPS = 100
_CONVERGED = 1e-3
# A channel below this share of its layer's largest range is pruned. It lives from its bias, which would be blown up
# with its weights and set the range of the activation.
_PRUNED = 1e-3
_SIGMAS = 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers between which a channel's scale can move; `rectified`: through a ReLU; `padded`: the second reads
    zeros around its input."""

    first: fx.Node
    second: fx.Node
    rectified: bool
    padded: bool


def find_pairs(module: fx.GraphModule) -> list[Pair]:
    """Layers of a folded and prepared graph whose result only the next layer reads, directly or through a ReLU.

    ReLU6 and other clips at a fixed value are not scale-equivariant: a channel divided by s would have to be clipped at
    6 / s, which the integer kernels, with one range per tensor, cannot do. Those pairs are left alone. (Nagel et al.
    put ReLU in the place of ReLU6, which changes the network.)
    """
    pairs = (_pair_ending_in(module, layer) for layer in quantized_layers(module))
    return [pair for pair in pairs if pair is not None]


def _pair_ending_in(module: fx.GraphModule, second: fx.Node) -> Pair | None:
    path: list[fx.Node] = [second.args[0]]  # type: ignore[list-item]
    padded = any(argument(second, 4, ())) or is_fused_padding(path[0])
    if is_fused_padding(path[0]):
        path.append(path[0].args[0])  # type: ignore[arg-type]
    rectified = clip_bounds(path[-1]) == (0, math.inf)
    if rectified:
        path.append(path[-1].args[0])  # type: ignore[arg-type]
    first = path[-1]
    if all(len(node.users) == 1 for node in path) and _share_channels(module, first, second):
        return Pair(first=first, second=second, rectified=rectified, padded=padded)
    return None


def _share_channels(module: fx.GraphModule, first: fx.Node, second: fx.Node) -> bool:
    """A linear layer's channels are last and a convolution's are second, and a padding may add some."""
    if not any(calls(first, *kind) and calls(second, *kind) for kind in (CONVOLUTIONS, {LINEAR})):
        return False
    if not integer_inputs(first):
        return False
    return len(weight_of(module, first)) == weight_of(module, second).shape[1] * groups_of(second)


def equalize_weights(module: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """A copy of a folded and prepared graph with evened out weights, and what each layer's result was divided by.

        W1[i] <- W1[i] / s_i      b1[i] <- b1[i] / s_i      W2[:, i] <- W2[:, i] * s_i
        s_i = sqrt(r1_i r2_i) / r2_i,      r1_i = max |W1[i]|,  r2_i = max |W2[:, i]|

    for every pair of layers and every channel i between them, after which both ranges are sqrt(r1_i r2_i). Since
    s relu(x / s) = relu(x), the answer of the network is the same. Where three or more layers follow one another, their
    pairs are visited in turn until nothing moves. The scales are by the first layer's node, one per channel.

    Source: Nagel et al., ICCV 2019, section 4.1. Pruned channels are left alone, which is ours.
    """
    module = copy_module(module)
    pairs = find_pairs(module)
    weights = {layer: weight_of(module, layer).double() for pair in pairs for layer in (pair.first, pair.second)}
    scales = {pair.first: torch.ones(len(weights[pair.first]), dtype=torch.float64) for pair in pairs}
    for _ in range(_SWEEPS):
        steps = [_equalize_pair(pair, weights, scales) for pair in pairs]
        if max(steps, default=0.0) < _CONVERGED:
            break
    for layer, weight in weights.items():
        replace_stored(module, layer, 1, "equalized_weight", weight)
        bias = optional_tensor(module, argument(layer, 2))
        if bias is not None and layer in scales:
            replace_stored(module, layer, 2, "equalized_bias", bias / scales[layer])
    return cleaned(module), {layer.name: scale for layer, scale in scales.items()}


def _equalize_pair(pair: Pair, weights: dict[fx.Node, Tensor], scales: dict[fx.Node, Tensor]) -> float:
    """Move scale between two layers, in place of what is stored of them; the largest move, as |log s|."""
    first, grouped = weights[pair.first], _by_group(weights[pair.second], groups_of(pair.second))
    first_ranges, second_ranges = first.flatten(1).abs().amax(1), grouped.abs().amax((1, 3)).flatten()
    used = (first_ranges > _PRUNED * first_ranges.max()) & (second_ranges > _PRUNED * second_ranges.max())
    scale = torch.where(used, first_ranges / second_ranges, 1.0).sqrt()
    scales[pair.first] = scales[pair.first] * scale
    weights[pair.first] = first / per_channel(scale, first)
    weights[pair.second] = scaled_inputs(weights[pair.second], scale, groups_of(pair.second))
    return float(scale.log().abs().max())


def scaled_inputs(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """A weight whose input channels are multiplied; scale: (input channels of all groups,)."""
    return (_by_group(weight, groups) * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(groups, outputs of a group, inputs of a group, kernel): input channels are the first and the third axis."""
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def rescale_moments(known: Mapping[str, Moments], scales: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Moments after equalization: of layers whose channels were divided by `scales`."""
    return {
        name: Moments(mean=moments.mean / scales[name], std=moments.std / scales[name]) if name in scales else moments
        for name, moments in known.items()
    }


def absorb_biases(module: fx.GraphModule, known: Mapping[str, Moments]) -> tuple[fx.GraphModule, dict[str, Moments]]:
    """A copy of a graph whose ReLUs read smaller biases, and the moments after that.

        b1 <- b1 - c      b2 <- b2 + W2 c      c = max(0, mean - 3 std)

    where mean and std are those of the first layer's results, known from its BatchNorm (`known`, by node). A channel
    that is above c in nearly all images (99.87 % of a normal distribution) passes ReLU either way; where it is below,
    the answer changes a little. Layers that pad their input are left alone: at the borders they would read 0 for c.

    Source: Nagel et al., ICCV 2019, section 4.1.3, which does not speak of padding.
    """
    module, known = copy_module(module), dict(known)
    changes: dict[fx.Node, Tensor] = {}
    for pair in find_pairs(module):
        if pair.rectified and not pair.padded and pair.first.name in known:
            moments = known[pair.first.name]
            surplus = (moments.mean - _SIGMAS * moments.std).clamp(min=0)
            answer = response(weight_of(module, pair.second).double(), surplus, groups_of(pair.second))
            changes[pair.first] = changes.get(pair.first, 0.0) - surplus
            changes[pair.second] = changes.get(pair.second, 0.0) + answer
            known[pair.first.name] = replace(moments, mean=moments.mean - surplus)
    for layer, change in changes.items():
        bias = optional_tensor(module, argument(layer, 2))
        replace_stored(module, layer, 2, "absorbed_bias", change if bias is None else bias + change)
    return cleaned(module), known


def replace_stored(module: fx.GraphModule, layer: fx.Node, index: int, name: str, value: Tensor) -> None:
    """Give a layer a weight (1) or a bias (2) of its own, under the name it is known by."""
    layer.meta["dffg_name"] = layer.meta.get("dffg_name", layer_name(layer))
    arguments = [*layer.args, None][: max(len(layer.args), index + 1)]
    arguments[index] = add_tensor(module, f"{layer.name}_{name}", value.float())
    layer.args = tuple(arguments)


def cleaned(module: fx.GraphModule) -> fx.GraphModule:
    """The graph without what is not read any more, ready to run."""
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
