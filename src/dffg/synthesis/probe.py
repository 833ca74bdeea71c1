"""Look at the input of every BatchNorm, cheaply: on the folded network, with the gradient written in closed form.

With BatchNorm folded into the layer before, its input x becomes y = weight_bn * (x - running_mean) / sd + bias_bn, so
that BatchNorm itself need not be computed and

    (m_x - running_mean) / sd           = (m_y - bias_bn) / weight_bn
    (s_x^2 + eps) / (running_var + eps) = (s_y / weight_bn)^2 + eps / (running_var + eps)

A BatchNorm that cannot be folded is measured at its own input; both cases are one formula with other constants
(`StatisticsTarget`). What is done with the statistics is a matter of a few small tensors and plain autograd: see
`objective.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from dffg.graph.captured import Captured
from dffg.graph.fold import FoldRecord, fold_with_records
from dffg.graph.nodes import with_output
from dffg.graph.padding import absorb_padding_
from dffg.synthesis.clipping import own_clips_, owns_gradient
from dffg.synthesis.statistics import live_channels


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """The input of one BatchNorm beside what it remembers, in its own units.

        mean_error = (m - running_mean) / sd        std_ratio = sqrt((s^2 + eps) / (running_var + eps))

    Both are (channels,) over a batch, or (batch, channels) per image; sd = sqrt(running_var + eps) is `std`, `live` is
    1 for channels of which anything reaches the rest of the network and 0 for dead ones, both (channels,). A dead
    channel is reported as perfect: error 0, ratio 1.
    """

    mean_error: Tensor
    std_ratio: Tensor
    std: Tensor
    live: Tensor


@dataclass(frozen=True, kw_only=True)
class StatisticsTarget:
    """Where a BatchNorm is measured, an activation of this mean and standard deviation is perfect; all (channels,)."""

    mean: Tensor
    std: Tensor
    floor: Tensor
    remembered_std: Tensor
    live: Tensor


class Probe:
    """A network cut down to what determines its BatchNorm inputs, ready to be evaluated many times."""

    def __init__(self, captured: Captured, *, change: Callable[[fx.GraphModule], None] | None = None) -> None:
        """`change` may rewrite the folded graph in place before it is cut."""
        module, records = fold_with_records(captured)
        answer = next(node for node in module.graph.nodes if node.op == "output").args[0]
        if change is not None:
            change(module)
        absorb_padding_(module)
        own_clips_(module)
        measured = watch(module, [record.node for record in records])
        self._network = with_output(module, measured)
        self._whole = with_output(module, [*measured, answer])
        self._targets = [target_of(record) for record in records]
        self._all_targets = _side_by_side(self._targets)

    @property
    def channels(self) -> list[Tensor]:
        """Which channels of every BatchNorm call are live, as in `LayerStatistics`."""
        return [target.live for target in self._targets]

    def side_by_side(self, images: Tensor, *, per_image: bool = False) -> LayerStatistics:
        """As a call, with the channels of all BatchNorms one after the other, as if of one: a few operations in all."""
        measured = self._network(per_image, images)
        return compare(_joined(measured[::2]), _joined(measured[1::2]), self._all_targets)

    def __call__(self, images: Tensor, *, per_image: bool = False) -> list[LayerStatistics]:
        """Statistics of every BatchNorm call in order of execution; differentiable once with respect to `images`."""
        return self._compare(self._network(per_image, images))

    def with_answer(self, images: Tensor, *, per_image: bool = False) -> tuple[list[LayerStatistics], Tensor]:
        """As a call, together with the network's answer."""
        *measured, answer = self._whole(per_image, images)
        return self._compare(measured), answer

    def _compare(self, measured: Sequence[Tensor]) -> list[LayerStatistics]:
        pairs = zip(measured[::2], measured[1::2], strict=True)
        return [compare(mean, var, target) for (mean, var), target in zip(pairs, self._targets, strict=True)]


def watch(module: fx.GraphModule, nodes: list[fx.Node]) -> list[fx.Node]:
    """Measure results where they arise: mean and variance of each, one after the other.

    The graph gets one more input, the first: whether to measure per image. Measured at the end, the gradients of all
    layers would exist at once, as much memory again as all results together.
    """
    graph = module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        per_image = graph.placeholder("per_image")
    return [moment for node in nodes for moment in _watch_one(graph, node, per_image)]


def _watch_one(graph: fx.Graph, node: fx.Node, per_image: fx.Node) -> tuple[fx.Node, fx.Node]:
    with graph.inserting_after(node):
        watched = graph.call_function(passed_with_moments, (node, per_image, owns_gradient(node)))
    with graph.inserting_after(watched):
        passed, mean, var = (graph.call_function(getitem, (watched, index)) for index in range(3))
    node.replace_all_uses_with(passed, delete_user_cb=lambda user: user is not watched)
    return mean, var


def target_of(record: FoldRecord) -> StatisticsTarget:
    """Constants for the place where a BatchNorm is measured."""
    norm = record.norm
    total_var = norm.running_var + norm.eps
    live = live_channels(norm).to(norm.running_var)
    if not record.folded:
        mean, std = norm.running_mean, total_var.sqrt()
    else:
        mean = torch.zeros_like(total_var) if norm.bias is None else norm.bias
        std = torch.ones_like(total_var) if norm.weight is None else norm.weight
    return StatisticsTarget(
        mean=mean,
        std=torch.where(live > 0, std, 1.0),
        floor=norm.eps / total_var,
        remembered_std=total_var.sqrt(),
        live=live,
    )


def _side_by_side(targets: Sequence[StatisticsTarget]) -> StatisticsTarget:
    names = [field.name for field in fields(StatisticsTarget)]
    return StatisticsTarget(**{name: torch.cat([getattr(target, name) for target in targets]) for name in names})


def _joined(values: Sequence[Tensor]) -> Tensor:
    """(channels,) of every layer, or (batch, channels) where one of them was measured per image."""
    images = max((len(value) for value in values if value.dim() == 2), default=None)
    return torch.cat([value if images is None else value.expand(images, -1) for value in values], dim=-1)


def compare(mean: Tensor, var: Tensor, target: StatisticsTarget) -> LayerStatistics:
    """Mean and biased variance of one activation, (channels,) or (batch, channels), beside its target."""
    ratio = (var / target.std.square() + target.floor).sqrt()
    return LayerStatistics(
        mean_error=(mean - target.mean) / target.std * target.live,
        std_ratio=torch.where(target.live > 0, ratio, 1.0),
        std=target.remembered_std,
        live=target.live,
    )


def moments(activation: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of (batch, channels, ...): (channels,), or (batch, channels) per image.

    A single value per image and channel has no variance, so such activations are always measured over the batch.

    By the kernel with which BatchNorm takes its statistics in training: for maps in the channels_last layout
    `torch.var_mean` takes 10 to 40 times as long, more than all convolutions of a network together.
    """
    if per_image and activation[0, 0].numel() > 1:
        means, variances = zip(*(moments(image.unsqueeze(0), False) for image in activation), strict=True)
        return torch.stack(means), torch.stack(variances)
    mean, var = torch.ops.aten.batch_norm_update_stats(activation, None, None, 0.0)
    return mean, var


def passed_with_moments(activation: Tensor, per_image: bool, owned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """An activation as it is, for the rest of the network, with its `moments`.

    owned: whether the gradient that comes back is a tensor of nobody else, which may be added to in place.
    """
    passed, mean, var = Moments.apply(activation, per_image, owned)
    return passed, mean, var


class Moments(torch.autograd.Function):
    """`passed_with_moments`. The gradient of moments is affine in the activation, per channel: slope * x + offset.

    Autograd through mean and variance would make several passes over what is the largest data of a step.
    """

    @staticmethod
    def forward(ctx: Any, activation: Tensor, per_image: bool, owned: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The activation itself, mean and variance of every channel."""
        mean, var = moments(activation, per_image)
        ctx.save_for_backward(activation, mean)
        ctx.owned = owned
        return activation, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_passed: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, None, None]:
        """Gradient with respect to the activation."""
        activation, mean = ctx.saved_tensors
        count = activation.numel() // mean.numel()
        slope = 2 * d_var / count
        offset = d_mean / count - slope * mean
        shape = (-1 if mean.dim() == 2 else 1, activation.shape[1], *[1] * (activation.dim() - 2))
        add = d_passed.add_ if ctx.owned else d_passed.add
        return add(offset.reshape(shape)).addcmul_(activation, slope.reshape(shape)), None, None
