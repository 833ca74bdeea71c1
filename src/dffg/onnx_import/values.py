"""What flows along the edges of an ONNX graph: tensors, and the numbers that describe them.

Exported graphs compute with shapes: they read sizes, gather, add and join them, and reshape by the result. Such numbers
are NumPy arrays here (of objects where the size of the batch, a torch.SymInt, may be among them), and only data is a
tensor: what is left when the graph runs is data alone, with every size known but the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[Any]
Value = Tensor | Numbers


def numbers(values: Any) -> Numbers:
    """Sizes as an array, whatever they are."""
    return np.asarray(values) if isinstance(values, np.generic) else np.array(values, dtype=object)


def ints(value: Value | list[int] | None) -> list[Any]:
    """Whole numbers that an operator needs before it runs; raises NotImplementedError where the data decides them."""
    if isinstance(value, Tensor):
        raise NotImplementedError("a size or an axis depends on the data")
    if value is None:
        return []
    entries = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    return [int(entry) if isinstance(entry, (np.generic, float)) else entry for entry in entries]


def scalar(value: Any, default: Any = None) -> Any:
    """One number, from an input or an attribute."""
    if isinstance(value, Tensor):
        raise NotImplementedError("a bound or a value depends on the data")
    if isinstance(value, np.ndarray):
        return value.reshape(-1)[0].item() if value.dtype != object else value.reshape(-1)[0]
    return default if value is None else value


def operand(value: Value) -> Any:
    """A tensor, or a number that torch takes beside one."""
    return scalar(value) if isinstance(value, np.ndarray) and value.ndim == 0 else tensor(value)


def tensor(value: Value) -> Tensor:
    """A tensor, of numbers too."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value.tolist()) if value.dtype == object else torch.from_numpy(np.array(value))


def axes_of(x: Tensor, axes: Value | list[int] | None) -> tuple[int, ...]:
    """Axes counted from the front; all where none are given."""
    return tuple(axis % x.dim() for axis in ints(axes)) or tuple(range(x.dim()))


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """What comes after the batch and the channels."""
    return tuple(range(2, x.dim()))
