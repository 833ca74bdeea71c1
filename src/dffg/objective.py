"""The loss of `statistics.py` made cheap: on the folded network, with its gradient written in closed form.

With BatchNorm folded into the layer before, its input x becomes y = weight_bn * (x - running_mean) / sd + bias_bn, so
that the target of y is mean bias_bn and standard deviation |weight_bn|, and

    (m_x - running_mean) / sd          = (m_y - bias_bn) / weight_bn
    (s_x^2 + eps) / (running_var + eps) = (s_y / weight_bn)^2 + eps / (running_var + eps)

Both forms are one formula with other constants (`Target`), and the BatchNorm itself need not be computed. The tests
hold this file to `statistics.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dffg.captured import Captured
from dffg.fold import FoldRecord, fold_with_records
from dffg.graph import with_output


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one measured activation should look like; all of shape (channels,).

        loss = sum over channels of weight * [ ((m - mean) / std)^2 + (sqrt((s / std)^2 + floor) - 1)^2 ]

    weight is 1 / channels, and 0 for channels that the BatchNorm multiplies by 0.
    """

    mean: Tensor
    std: Tensor
    floor: Tensor
    weight: Tensor


class Objective:
    """Distance of a batch from what a network remembers, ready to be evaluated many times.

    Equal to `batch_norm_statistics_loss` of the BatchNorm inputs, value and gradient, but for rounding.
    """

    def __init__(self, captured: Captured, *, per_image: bool = False) -> None:
        module, records = fold_with_records(captured)
        self._network = with_output(module, [record.node for record in records])
        self._targets = [target_of(record) for record in records]
        self._per_image = per_image

    def __call__(self, images: Tensor) -> Tensor:
        """Loss of a batch of network inputs; differentiable once."""
        activations = self._network(images)
        losses = [
            _Distance.apply(activation, target, self._dims(activation))
            for activation, target in zip(activations, self._targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def _dims(self, activation: Tensor) -> tuple[int, ...]:
        spatial = tuple(range(2, activation.dim()))
        return spatial if self._per_image and activation[0, 0].numel() > 1 else (0, *spatial)


def target_of(record: FoldRecord) -> Target:
    """Constants of the loss for the place where a BatchNorm is measured."""
    norm = record.norm
    total_var = norm.running_var + norm.eps
    live = torch.ones_like(norm.running_var) if norm.weight is None else (norm.weight != 0).to(norm.running_var)
    weight = live / live.sum().clamp(min=1)
    if not record.folded:
        mean, std = norm.running_mean, total_var.sqrt()
    else:
        mean = torch.zeros_like(total_var) if norm.bias is None else norm.bias
        std = torch.ones_like(total_var) if norm.weight is None else norm.weight.abs()
    return Target(mean=mean, std=torch.where(live > 0, std, 1.0), floor=norm.eps / total_var, weight=weight)


class _Distance(torch.autograd.Function):
    """Loss of one activation. Its gradient is affine in the activation, per channel: slope * x + offset.

    Autograd through mean and variance would make several passes over what is the largest data of a step.
    """

    @staticmethod
    def forward(ctx: Any, activation: Tensor, target: Target, dims: tuple[int, ...]) -> Tensor:
        var, mean = torch.var_mean(activation, dim=dims, correction=0)
        away = (mean - target.mean) / target.std
        ratio = (var / target.std.square() + target.floor).sqrt()
        groups = mean.shape[0] if mean.dim() == 2 else 1
        weight = target.weight / groups
        count = activation.numel() // mean.numel()
        d_mean = 2 * weight * away / target.std
        d_var = weight * (ratio - 1) / ratio / target.std.square()
        slope = 2 * d_var / count
        ctx.save_for_backward(activation, slope, d_mean / count - slope * mean)
        return (weight * (away.square() + (ratio - 1).square())).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        activation, slope, offset = ctx.saved_tensors
        shape = (-1 if slope.dim() == 2 else 1, activation.shape[1], *[1] * (activation.dim() - 2))
        slope, offset = ((upstream[0] * value).reshape(shape) for value in (slope, offset))
        return torch.addcmul(offset, activation, slope), None, None
