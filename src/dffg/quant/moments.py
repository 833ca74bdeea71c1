"""Mean and deviation of activations, as far as BatchNorm tells them: known behind every BatchNorm, and carried on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dffg.graph.batch_norms import BatchNorm
from dffg.graph.fold import FoldRecord
from dffg.graph.nodes import argument, aten, calls, pads_with_zeros
from dffg.quant.operators import COPY
from dffg.quant.placement import POOLS, clip_bounds

_SMALLEST_STD = 1e-30
FLATTENING = (aten.flatten.using_ints, aten.reshape.default, aten.view.default)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and standard deviation of a tensor per channel (axis 1), over images and positions; float64, (channels,)."""

    mean: Tensor
    std: Tensor


def batch_norm_moments(records: Iterable[FoldRecord]) -> dict[str, Moments]:
    """Moments of what every BatchNorm call writes, by the node that carries it: mean beta, deviation |gamma|.

    The deviation is |gamma| sqrt(var / (var + eps)), so that it is 0 in dead channels.
    """
    return {
        (record.node if record.folded else record.norm.node).name: _output_moments(record.norm) for record in records
    }


def _output_moments(norm: BatchNorm) -> Moments:
    variance = norm.running_var.double()
    std = (variance / (variance + norm.eps)).sqrt()
    return Moments(
        mean=torch.zeros_like(std) if norm.bias is None else norm.bias.double(),
        std=std if norm.weight is None else std * norm.weight.double().abs(),
    )


def propagate(module: fx.GraphModule, known: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments of every node of a graph that they can be said of, from those that are known.

    Carried through clips (ReLU, ReLU6), where a normal distribution is assumed (Nagel et al., ICCV 2019, section 4.2.1
    and the appendix); beyond the paper, through sums, whose terms are taken for independent, joins of channels, average
    pooling, flattening, zero padding and subsampling. Where positions are averaged, the deviation is an upper bound.
    """
    moments: dict[str, Moments] = {}
    for node in module.graph.nodes:
        found = known.get(node.name) or _through(node, moments)
        if found is not None:
            moments[node.name] = found
    return moments


def response(weight: Tensor, values: Tensor, groups: int) -> Tensor:
    """What a layer without bias answers, away from borders, to an input that is constant in every channel.

    weight: (outputs, inputs / groups, *kernel); values: (inputs,); the answer: (outputs,).
    """
    per_input = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum(3)
    return torch.einsum("goi,gi->go", per_input, values.reshape(groups, -1)).flatten()


def clipped_normal(moments: Moments, low: float, high: float) -> Moments:
    """Moments of clip(x, low, high), x normal with the given ones; `low` is finite, `high` may be infinite.

    With r = relu(x - low) and t = relu(x - high), clip(x) = low + r - t and (clip(x) - low)^2 = r^2 - t^2 - 2 (high -
    low) t, so that the moments of ReLU are enough.
    """
    mean, square = _rectified(moments, low)
    if high < math.inf:
        mean_above, square_above = _rectified(moments, high)
        square = square - square_above - 2 * (high - low) * mean_above
        mean = mean - mean_above
    return Moments(mean=low + mean, std=(square - mean.square()).clamp(min=0).sqrt())


def _rectified(moments: Moments, threshold: float) -> tuple[Tensor, Tensor]:
    """E relu(x - threshold) and E relu(x - threshold)^2 of a normal x."""
    mean, std = moments.mean - threshold, moments.std.clamp(min=_SMALLEST_STD)
    density = torch.exp(-0.5 * (mean / std).square()) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(mean / std)
    return mean * share + std * density, (mean.square() + std.square()) * share + mean * std * density


def _through(node: fx.Node, moments: Mapping[str, Moments]) -> Moments | None:
    """Moments of what an operator writes, from those of what it reads."""
    if calls(node, aten.cat.default):
        parts = [moments.get(part.name) for part in node.args[0]]  # type: ignore[union-attr, arg-type]
        return _joined([part for part in parts if part]) if argument(node, 1, 0) == 1 and all(parts) else None
    operands = [moments.get(operand.name) for operand in node.args if isinstance(operand, fx.Node)]
    first = operands[0] if operands else None
    if first is None:
        return None
    if calls(node, aten.add.Tensor):
        second = operands[1] if len(operands) == 2 and node.kwargs.get("alpha", 1) == 1 else None
        return None if second is None else _sum(first, second)
    return _of_one(node, first)


def _of_one(node: fx.Node, moments: Moments) -> Moments | None:
    bounds = clip_bounds(node)
    if bounds is not None:
        return clipped_normal(moments, *bounds) if bounds[0] > -math.inf else None
    if calls(node, *POOLS, COPY) or (
        calls(node, aten.slice.Tensor) and argument(node, 1, 0) % node.meta["val"].dim() != 1
    ):
        return moments
    if calls(node, aten.pad.default):
        return _padded(node, moments) if pads_with_zeros(node) else None
    return _flattened(node, moments) if calls(node, *FLATTENING) else None


def _joined(parts: list[Moments]) -> Moments:
    return Moments(mean=torch.cat([part.mean for part in parts]), std=torch.cat([part.std for part in parts]))


def _sum(first: Moments, second: Moments) -> Moments | None:
    if first.mean.shape != second.mean.shape:
        return None
    return Moments(mean=first.mean + second.mean, std=torch.hypot(first.std, second.std))


def _padded(node: fx.Node, moments: Moments) -> Moments:
    """Zeros at the borders are ignored; channels of zeros are counted."""
    sides, spatial = argument(node, 1), node.meta["val"].dim() - 2
    channels = tuple(sides[2 * spatial : 2 * spatial + 2]) or (0, 0)
    return Moments(mean=F.pad(moments.mean, channels), std=F.pad(moments.std, channels))


def _flattened(node: fx.Node, moments: Moments) -> Moments | None:
    """Images to vectors: every channel's positions lie side by side."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    length = math.prod(before[1:])
    if len(after) != 2 or after[1] != length or length % len(moments.mean):
        return None
    positions = length // len(moments.mean)
    return Moments(mean=moments.mean.repeat_interleave(positions), std=moments.std.repeat_interleave(positions))
