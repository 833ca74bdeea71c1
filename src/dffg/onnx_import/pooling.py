"""ONNX operators that reduce windows or whole axes, as torch calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dffg.onnx_import.values import Value, axes_of, ints, spatial_axes
from dffg.onnx_import.windows import Windows, of_rank, windows


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    """Padding never wins: only the number of windows must be as in the file, which saves writing the padding out."""
    found = windows(x, kernel_shape, strides, dilations, pads, auto_pad)
    pool = of_rank("max_pool", len(kernel_shape))
    wanted, begin = found.counts(x, ceil_mode=bool(ceil_mode)), replace(found, end=found.begin)
    for rounded_up in (False, True):
        if found.fits_torch and begin.counts(x, ceil_mode=rounded_up) == wanted:
            return pool(x, kernel_shape, found.strides, found.begin, found.dilations, rounded_up)  # type: ignore[no-any-return]
    padded = found.with_room_for(wanted, x).pad(x, -math.inf)
    return pool(padded, kernel_shape, found.strides, 0, found.dilations)  # type: ignore[no-any-return]


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    found = windows(x, kernel_shape, strides, dilations, pads, auto_pad)
    if set(found.dilations) != {1}:
        raise NotImplementedError("average pooling with dilations is not supported")
    if found.is_symmetric and found.fits_torch:
        pool = of_rank("avg_pool", len(kernel_shape))
        return pool(x, kernel_shape, found.strides, found.begin, bool(ceil_mode), bool(count_include_pad))  # type: ignore[no-any-return]
    return _average_of_padded(x, found, bool(ceil_mode), bool(count_include_pad))


def _average_of_padded(x: Tensor, found: Windows, ceil_mode: bool, count_padding: bool) -> Tensor:
    """The padding written out, and taken out of the mean where it does not count, as is what lies beyond it."""
    pool = of_rank("avg_pool", len(found.kernel))
    roomy = found.with_room_for(found.counts(x, ceil_mode=ceil_mode), x)
    mean: Tensor = pool(roomy.pad(x), found.kernel, found.strides)
    if count_padding and not ceil_mode:
        return mean
    inside = torch.ones(1, 1, *x.shape[2:])
    counted = roomy.beyond(found).pad(found.pad(inside, 1.0)) if count_padding else roomy.pad(inside)
    return mean / pool(counted, found.kernel, found.strides)  # type: ignore[no-any-return]


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(
        x: Tensor,
        axes: Value | list[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        if noop_with_empty_axes and not ints(axes):
            return x
        return function(x, axes_of(x, axes), keepdim=bool(keepdims))

    return run


POOLING: dict[str, Callable[..., Any]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda x: torch.mean(x, spatial_axes(x), keepdim=True),
    "GlobalMaxPool": lambda x: torch.amax(x, spatial_axes(x), keepdim=True),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
}
