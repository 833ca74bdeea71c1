"""What a BatchNorm remembers, and how far a batch of images is from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from dffg.graph.batch_norms import BatchNorm
from dffg.graph.captured import Captured
from dffg.graph.nodes import with_output


def batch_norm_inputs(captured: Captured) -> fx.GraphModule:
    """The part of the network that computes the input of every BatchNorm, returned in order of execution."""
    return with_output(captured.module, [norm.input for norm in captured.batch_norms])


def input_statistics(activation: Tensor, per_image: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, as BatchNorm computes them in training.

    activation: (batch, channels, ...). Returns (channels,) over the batch, or (batch, channels) per image. A single
    value per image and channel has no variance, so such layers are always measured over the batch.
    """
    dims = [dim for dim in range(activation.dim()) if dim != 1]
    if per_image and activation[0, 0].numel() > 1:
        dims.remove(0)
    var, mean = torch.var_mean(activation, dim=dims, correction=0)
    return mean, var


def layer_loss(norm: BatchNorm, activation: Tensor, per_image: bool = False, slack: float = 0.0) -> Tensor:
    """Distance of one BatchNorm's input from its running statistics, averaged over channels.

        e = (m - running_mean) / sd,   r = sqrt((s^2 + eps) / (running_var + eps)),   sd = sqrt(running_var + eps)
        max(|e| - slack, 0)^2 + max(|r - 1| - slack, 0)^2

    with m and s^2 the mean and variance of the input. eps on both sides keeps channels of zero variance, which trained
    networks do have, at a finite and attainable target. Dead channels are left out (`live_channels`).
    """
    mean, var = input_statistics(activation, per_image)
    total_var = norm.running_var + norm.eps
    mean_error = (mean - norm.running_mean) / total_var.sqrt()
    std_ratio = ((var + norm.eps) / total_var).sqrt()
    distance = beyond(mean_error, slack).square() + beyond(std_ratio - 1, slack).square()
    live = live_channels(norm)
    images = distance.numel() // len(live)
    # At least one entry, so that a layer without live channels costs nothing.
    return distance[..., live].sum() / max(1, int(live.sum()) * images)


def beyond(error: Tensor, slack: float) -> Tensor:
    """How far an error is outside of [-slack, slack]."""
    return (error.abs() - slack).clamp(min=0)


def live_channels(norm: BatchNorm) -> Tensor:
    """Channels of which anything reaches the rest of the network, as booleans (channels,).

    A channel whose weight is 0, or so small that in float32 its variation is lost beside its bias and beside the other
    channels, is constant behind the BatchNorm.
    """
    if norm.weight is None:
        return torch.ones_like(norm.running_var, dtype=torch.bool)
    weight = norm.weight.abs()
    beside = weight.max() if norm.bias is None else norm.bias.abs() + weight.max()
    return weight > torch.finfo(torch.float32).eps * beside


def batch_norm_statistics_loss(
    batch_norms: Sequence[BatchNorm],
    activations: Sequence[Tensor],
    *,
    per_image: bool = False,
    slack: float = 0.0,
) -> Tensor:
    """Distance of a batch from what the network remembers: the mean of `layer_loss` over all BatchNorm calls.

    Idea 1 of DFFG (Leng et al., BMVC 2023): recover the distribution of the training data from BatchNorm. The abstract
    gives no formula; matching mean and standard deviation is ZeroQ's (Cai et al., CVPR 2020), the normalization per
    channel is ours, so that wide layers and loud channels weigh no more than others. Slack is the idea of DSG (Zhang
    et al., CVPR 2021), who set it per layer from noise; here it is one number, in standard deviations of the channel.
    """
    losses = [
        layer_loss(norm, activation, per_image, slack)
        for norm, activation in zip(batch_norms, activations, strict=True)
    ]
    return torch.stack(losses).mean()
