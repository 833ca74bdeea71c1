"""ONNX operators that move, choose and repeat elements, as torch calls."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dffg.onnx_import.values import Numbers, Value, axes_of, ints, numbers, scalar, tensor

_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def reshape(x: Tensor, shape: Value | list[int], *, allowzero: int = 0) -> Tensor:
    """A zero keeps the size that an axis has."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if axis == 1:
        return torch.flatten(x, 1)
    axis = axis if axis >= 0 else axis + x.dim()
    return x.reshape(functools.reduce(operator.mul, x.shape[:axis], 1), -1)


def _unsqueeze(x: Tensor, axes: Value | list[int]) -> Tensor:
    rank = x.dim() + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Value | list[int] | None = None) -> Tensor:
    ones = [axis for axis in range(1, x.dim()) if x.shape[axis] == 1]
    return torch.squeeze(x, ones if axes is None else axes_of(x, axes))


def _split(x: Tensor, split: Value | list[int] | None = None, *, axis: int = 0, num_outputs: int) -> tuple[Tensor, ...]:
    return torch.split(x, ints(split) or -(-x.shape[axis] // num_outputs), axis)


def _split_to_sequence(x: Tensor, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """Parts of one size where a single one is given; a list is one value, which SequenceAt reads."""
    if split is None:
        return [part if keepdims else part.squeeze(axis) for part in torch.split(x, 1, axis)]
    whole = isinstance(split, np.ndarray) and split.ndim == 0
    return list(torch.split(x, ints(split)[0] if whole else ints(split), axis))


def _slice(
    x: Tensor,
    starts: Value | list[int],
    ends: Value | list[int],
    axes: Value | list[int] | None = None,
    steps: Value | list[int] | None = None,
) -> Tensor:
    first, last = ints(starts), ints(ends)
    for axis, start, end, step in zip(ints(axes) or range(len(first)), first, last, ints(steps) or [1] * len(first)):
        if step < 0:
            chosen = range(*slice(start, max(end, -sys.maxsize), step).indices(x.shape[axis]))
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
        else:
            x = x[(*[slice(None)] * (axis % x.dim()), slice(start, end, step))]
    return x


def _gather(x: Tensor, indices: Value, *, axis: int = 0) -> Tensor:
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return x.select(axis, scalar(indices))
    chosen, axis = tensor(indices), axis % x.dim()
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked if chosen.dim() == 1 else picked.unflatten(axis, chosen.shape)


def _expand(x: Tensor, shape: Value) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def _pad(
    x: Tensor,
    pads: Value | list[int],
    value: Value | float | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """torch counts axes from the last, and pads as few as are given; with copies, at least all behind the channels."""
    sides, padded = ints(pads), axes_of(x, axes)
    pairs = dict(zip(padded, zip(sides[: len(padded)], sides[len(padded) :])))
    rest = [pairs.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    fewest = 0 if mode == "constant" else max(x.dim() - 2, 1)
    while len(rest) > fewest and rest[-1] == (0, 0):
        rest.pop()
    given = [side for pair in rest for side in pair]
    if mode == "constant":
        return F.pad(x, given, value=scalar(value, 0.0))
    if len(rest) > min(x.dim() - 1, 3):
        raise NotImplementedError(f"{mode} padding of the batch, or of more than three axes, is not supported")
    return F.pad(x, given, mode=_PAD_MODES[mode]) if any(given) else x


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * blocksize, width * blocksize)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Numbers:
    return numbers(list(x.shape)[start:end])


SHAPING: dict[str, Callable[..., Any]] = {
    "Reshape": reshape,
    "Flatten": _flatten,
    "Transpose": lambda x, *, perm=None: x.permute(perm or tuple(reversed(range(x.dim())))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda *values, axis: torch.cat([tensor(value) for value in values], axis),
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": lambda parts, position: parts[scalar(position)],
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": _shape,
}
