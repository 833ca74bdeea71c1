"""ONNX operators with weights or statistics, as torch calls that capture recognizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dffg.onnx_import.shaping import reshape
from dffg.onnx_import.values import Value, operand, tensor
from dffg.onnx_import.windows import halves, of_rank, windows


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Value | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    found = windows(x, list(weight.shape[2:]), strides, dilations, pads, auto_pad)
    padding = found.begin if found.is_symmetric else [0] * len(found.kernel)
    padded = x if found.is_symmetric else found.pad(x)
    convolve = of_rank("conv", len(found.kernel))
    result: Tensor = convolve(padded, weight, _optional(bias), found.strides, padding, found.dilations, group)
    return result


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Value | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """Padding crops the result; what torch cannot express is cropped afterwards.

    What `output_shape` wants beyond the result comes at the end, as in ONNX Runtime.
    """
    found = windows(x, list(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    rank = len(found.kernel)
    extra = output_padding or [0] * rank
    begin, end = found.begin, found.end
    if output_shape is not None or auto_pad.startswith("SAME"):
        sizes = output_shape or [size * stride for size, stride in zip(x.shape[2:], found.strides)]
        full = [
            s * (size - 1) + e + d * (k - 1) + 1
            for size, s, e, d, k in zip(x.shape[2:], found.strides, extra, found.dilations, found.kernel)
        ]
        totals = [whole - size for whole, size in zip(full, sizes[-rank:])]
        begin, end = halves([max(total, 0) for total in totals], auto_pad)
        if output_shape is not None:
            extra = [padding + max(-total, 0) for padding, total in zip(extra, totals)]
    transpose = of_rank("conv_transpose", rank)
    shared = [min(pair) for pair in zip(begin, end)]
    result: Tensor = transpose(x, weight, _optional(bias), found.strides, shared, extra, group, found.dilations)
    for axis, (first, last, cut) in enumerate(zip(begin, end, shared), start=2):
        result = result.narrow(axis, first - cut, result.shape[axis] - (first - cut) - (last - cut))
    return result


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    x, weight = a.t() if transA else a, b if transB else b.t()
    weight = weight if alpha == 1 else alpha * weight
    if c is None:
        return F.linear(x, weight)
    added = operand(c) if beta == 1 else beta * operand(c)
    if isinstance(added, Tensor) and added.numel() == weight.shape[0] and added.shape[-1] == added.numel():
        return F.linear(x, weight, added.reshape(-1))
    result: Tensor = F.linear(x, weight) + added
    return result


def _matmul(a: Value, b: Value, bias: Tensor | None = None) -> Tensor:
    """As a linear layer where the second is a matrix."""
    a, b = tensor(a), tensor(b)
    if b.dim() == 2 and a.dim() > 1:
        return F.linear(a, b.t(), bias)
    return torch.matmul(a, b) if bias is None else torch.matmul(a, b) + bias


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """On the stored statistics, as in use; in a file exported while training too."""
    if not spatial:
        raise NotImplementedError("statistics for every position (spatial=0) are not supported")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _instance_norm(x: Tensor, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=tensor(scale), bias=tensor(bias), eps=epsilon)


def _group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def _group_norm_before_21(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """With a scale and a bias for every group in place of every channel."""
    size = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(size), bias.repeat_interleave(size), epsilon)


def group_norm_of_rows(x: Tensor, shape: Value, *, groups: int, epsilon: float, allowzero: int = 0) -> Tensor:
    """What a normalization of `groups` rows gives that are laid back into a shape."""
    return reshape(F.group_norm(x, groups, eps=epsilon), shape, allowzero=allowzero)


def _layer_norm(
    x: Tensor,
    scale: Value,
    bias: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """torch knows a scale and a bias of the size of what is normalized; ONNX any that broadcast."""
    shape, weight, offset = x.shape[axis % x.dim() :], tensor(scale), _optional(bias)
    if all(torch.broadcast_shapes(value.shape, shape) == shape for value in (weight, offset) if value is not None):
        return F.layer_norm(x, shape, _expanded(weight, shape), _expanded(offset, shape), epsilon)
    scaled = weight * F.layer_norm(x, shape, eps=epsilon)
    return scaled if offset is None else scaled + offset


def _expanded(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    return value if value is None or value.shape == shape else value.expand(shape)


def _local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise NotImplementedError("a window of an even size is not supported")
    return F.local_response_norm(x, size, alpha, beta, bias)


def _optional(value: Value | None) -> Tensor | None:
    return None if value is None else tensor(value)


LAYERS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _local_response_norm,
}
LAYERS_BEFORE_21: dict[str, Callable[..., Any]] = {"GroupNormalization": _group_norm_before_21}
