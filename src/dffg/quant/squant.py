"""SQuant: round so that errors cancel within every kernel and every output channel; no data, no gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.quant.affine import QParams


def squant(weight: Tensor, qparams: QParams) -> Tensor:
    """Integers of a weight, of which a few are rounded the other way so that the sums of their errors are small.

        e = q - clip(weight / scale, quant_min, quant_max)
        |e| < 1      |sum over a kernel of e| <= 1      |sum over an output channel of e| <= 1/2

    An input whose values are about equal within a kernel, or over a channel's inputs, sees only those sums. From the
    nearest integers, each kernel (the weights between one input and one output channel) first flips round(|sum|) of its
    roundings, the largest errors of the sum's sign, after which its sum is at most 1/2; then each output channel flips
    one rounding in round(|sum|) of its kernels, those with the largest sums. Where a kernel is one weight, as in
    1x1 convolutions and linear layers, only the second stage does anything; in depthwise ones only the first does.

    weight: (outputs, inputs, *kernel), `qparams` with one scale per output; integers of the zero point's type.

    Source: Guo et al., ICLR 2022, sections 3.3 and 3.4 (SQuant-K, SQuant-C). The paper does not say what becomes of
    clipped weights; here the error is that of the clipped value, so that no flip can leave the range. Computed in
    float64: a float32 sum over a thousand weights would blur the comparison with 1/2.
    """
    target = weight.flatten(1).double() / qparams.scale.double().unsqueeze(1)
    target = target.clamp_(qparams.quant_min, qparams.quant_max).reshape(*weight.shape[:2], -1)
    levels = target.round()
    levels -= _flips(levels - target)
    levels -= _flips_across_kernels(levels - target)
    return levels.reshape(weight.shape).to(qparams.zero_point.dtype)


def _flips(errors: Tensor) -> Tensor:
    """What to subtract along the last axis, -1, 0 or 1, so that the sum of the errors is at most 1/2.

    There are always enough errors of the sum's sign: none is above 1/2, so a sum s has at least 2 |s| of them.
    """
    sums = errors.sum(-1, keepdim=True)
    ranks = (errors * sums.sign()).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return torch.where(ranks < sums.abs().round(), sums.sign(), 0.0)


def _flips_across_kernels(errors: Tensor) -> Tensor:
    """As `_flips` for the sums of the kernels; in each chosen kernel, its largest error of the same sign is flipped."""
    chosen = _flips(errors.sum(2)).unsqueeze(2)
    largest = (errors * chosen.sign()).argmax(2, keepdim=True)
    return torch.zeros_like(errors).scatter_(2, largest, chosen)
