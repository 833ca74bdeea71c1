"""SQuant: round so that errors cancel within every kernel and every output channel; no data, no gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.quant.affine import QParams


def squant(weight: Tensor, qparams: QParams) -> Tensor:
    """Integers of a weight, of which some are rounded the other way so that the sums of their errors are small.

        e = q - weight / scale;    |sum of e over a kernel| <= 1,    |sum of e over an output channel| <= 1/2

    An input that is about constant within a kernel, or over the inputs of a channel, sees only those sums. From the
    nearest integers, each kernel (the weights between one input and one output channel) flips round(|sum|) of its
    roundings, the largest errors of the sum's sign, after which its sum is at most 1/2; then each output channel flips
    one rounding in round(|sum|) of its kernels, those with the largest sums. Where a kernel is one weight, as in 1x1
    convolutions and linear layers, only the second stage does anything; in depthwise ones only the first does.

    Every |e| stays below 1, except where a weight is clipped: that error enters the sums, so that the other weights
    make up for it, and is never flipped. Where clipping has taken more than they can give, the sums stay larger.

    weight: (outputs, inputs, *kernel), `qparams` with one scale per output; integers of the zero point's type.

    Source: Guo et al., ICLR 2022 (the stages called SQuant-K and SQuant-C). What clipped weights do is ours. Computed
    in float64: a float32 sum over a thousand weights would blur the comparison with 1/2.
    """
    target = weight.flatten(1).double() / qparams.scale.double().unsqueeze(1)
    target = target.reshape(*weight.shape[:2], -1)
    levels = target.round().clamp_(qparams.quant_min, qparams.quant_max)
    movable = (target > qparams.quant_min) & (target < qparams.quant_max)
    # Alone in its kernel, a weight is off by at most 1/2 already.
    if target.shape[2] > 1:
        levels -= _flips(levels - target, movable)
    levels -= _flips_across_kernels(levels - target, movable)
    return levels.reshape(weight.shape).to(qparams.zero_point.dtype)


def _flips(errors: Tensor, movable: Tensor) -> Tensor:
    """What to subtract along the last axis, -1, 0 or 1, so that the sum of the errors is at most 1/2.

    Where all are movable there are always enough errors of the sum's sign: none is above 1/2, so a sum s takes at least
    2 |s| of them.
    """
    sums = errors.sum(-1, keepdim=True)
    signed = torch.where(movable, errors * sums.sign(), 0.0)
    ranks = signed.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return torch.where((ranks < sums.abs().round()) & (signed > 0), sums.sign(), 0.0)


def _flips_across_kernels(errors: Tensor, movable: Tensor) -> Tensor:
    """As `_flips` for the sums of the kernels; in each chosen kernel, its largest error of the same sign is flipped."""
    sums = errors.sum(2)
    sign = sums.sum(1).sign().reshape(-1, 1, 1)
    largest = torch.where(movable, errors * sign, 0.0).max(2, keepdim=True)
    chosen = _flips(sums, largest.values.squeeze(2) > 0)
    return torch.zeros_like(errors).scatter_(2, largest.indices, chosen.unsqueeze(2))
