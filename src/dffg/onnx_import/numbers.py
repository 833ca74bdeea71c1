"""ONNX operators on numbers, in NumPy; see `values.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from dffg.onnx_import.values import Numbers, Value, ints, numbers

_MOST_ELEMENTS = 2**28


def _is_whole(value: Numbers) -> bool:
    if value.dtype != object:
        return value.dtype.kind in "iub"
    return not any(isinstance(entry, (float, np.floating, torch.SymFloat)) for entry in value.reshape(-1).tolist())


def _divide(a: Numbers, b: Numbers) -> Any:
    if not (_is_whole(a) and _is_whole(b)):
        return a / b
    return np.array(np.frompyfunc(_divide_whole, 2, 1)(a, b), dtype=np.result_type(a, b))


def _divide_whole(a: Any, b: Any) -> Any:
    """Towards zero, as ONNX Runtime does. A batch that is not known yet is not asked for its sign, as that fixes it."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt) or (a < 0) == (b < 0):
        return a // b
    return -(-a // b)


def _each(change: Callable[[Any], Any], value: Numbers) -> Numbers:
    result = np.empty(value.shape, dtype=object)
    result.reshape(-1)[:] = [change(entry) for entry in value.reshape(-1).tolist()]
    return result


def _cast(value: Numbers, *, to: int, saturate: int = 1) -> Numbers:
    kind = onnx.helper.tensor_dtype_to_np_dtype(to)
    if value.dtype != object:
        return value.astype(kind)
    return _each(torch.sym_float if kind.kind == "f" else torch.sym_int, value)


def _slice(
    value: Numbers,
    starts: Value | list[int],
    ends: Value | list[int],
    axes: Value | list[int] | None = None,
    steps: Value | list[int] | None = None,
) -> Numbers:
    first, last = ints(starts), ints(ends)
    chosen = [slice(None)] * value.ndim
    for axis, start, end, step in zip(ints(axes) or range(len(first)), first, last, ints(steps) or [1] * len(first)):
        chosen[axis] = slice(start, end, step)
    return value[tuple(chosen)]


def _unsqueeze(value: Numbers, axes: Value | list[int]) -> Numbers:
    return np.expand_dims(value, tuple(ints(axes)))


def _squeeze(value: Numbers, axes: Value | list[int] | None = None) -> Numbers:
    return np.squeeze(value, tuple(ints(axes)) or None)


def _constant_of_shape(shape: Numbers, *, value: Numbers | None = None) -> Value:
    fill = np.zeros(1, dtype=np.float32) if value is None else value
    return _repeated(fill.reshape(-1)[0], ints(shape))


def _repeated(value: Any, sizes: list[Any]) -> Value:
    """As data where the batch, which is not known yet, is among the sizes."""
    if any(isinstance(size, torch.SymInt) for size in sizes):
        return torch.from_numpy(np.array(value)).expand(sizes)
    return np.array(np.broadcast_to(value, _allowed(sizes)))


def _allowed(sizes: list[int]) -> list[int]:
    """The sizes of an array that can be made."""
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise NotImplementedError(f"a constant of shape {sizes} is too large")
    return sizes


def _expand(value: Numbers, shape: Value | list[int]) -> Value:
    return _repeated(value, list(torch.broadcast_shapes(value.shape, tuple(ints(shape)))))


def _range(start: Numbers, limit: Numbers, delta: Numbers) -> Numbers:
    first, last, step = start.item(), limit.item(), delta.item()
    _allowed([math.ceil((last - first) / step)])
    return np.arange(first, last, step)


def _reduce_product(value: Numbers, axes: Value | list[int] | None = None, *, keepdims: int = 1) -> Any:
    return np.prod(value, axis=tuple(ints(axes)) or None, keepdims=bool(keepdims))


NUMBER_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Min": lambda *values: functools.reduce(np.minimum, values),
    "Max": lambda *values: functools.reduce(np.maximum, values),
    "Neg": np.negative,
    "Floor": lambda value: _each(math.floor, value),
    "Ceil": lambda value: _each(math.ceil, value),
    "Equal": lambda a, b: np.asarray(a == b, dtype=bool),
    "Where": np.where,
    "Cast": _cast,
    "Identity": lambda value: value,
    "Shape": lambda value, *, start=0, end=None: numbers(value.shape[start:end]),
    "Gather": lambda value, indices, *, axis=0: np.take(value, np.array(indices, dtype=np.int64), axis),
    "Concat": lambda *values, axis: np.concatenate(values, axis),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": lambda value, shape, *, allowzero=0: value.reshape(ints(shape)),
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _reduce_product,
}
