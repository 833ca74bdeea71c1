"""ONNX operators that compute every element for itself, as torch calls."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from dffg.onnx_import.values import Value, operand, scalar, tensor

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _with_operands(function: Callable[[Any, Any], Any]) -> Callable[[Value, Value], Tensor]:
    return lambda a, b: function(operand(a), operand(b))


def _divide(a: Any, b: Any) -> Any:
    """Whole numbers are divided towards zero."""
    whole = not any(
        isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()) for value in (a, b)
    )
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _of_all(function: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    """The tensors among the values first: torch takes a number only beside one."""

    def run(*values: Value) -> Tensor:
        given = sorted(map(operand, values), key=lambda value: not isinstance(value, Tensor))
        result: Tensor = functools.reduce(function, given)
        return result

    return run


def _largest(a: Tensor, b: Any) -> Tensor:
    return torch.maximum(a, b) if isinstance(b, Tensor) else torch.clamp(a, min=b)


def _smallest(a: Tensor, b: Any) -> Tensor:
    return torch.minimum(a, b) if isinstance(b, Tensor) else torch.clamp(a, max=b)


def _clip(x: Tensor, min: Value | float | None = None, max: Value | float | None = None) -> Tensor:
    low, high = scalar(min), scalar(max)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _prelu(x: Tensor, slope: Value) -> Tensor:
    """torch knows a slope for all, or for every channel; ONNX any that broadcasts."""
    slope = tensor(slope)
    per_channel = slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if slope.numel() == 1 or per_channel:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def _selu(x: Tensor, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Tensor:
    if math.isclose(alpha, _SELU_ALPHA, rel_tol=1e-6) and math.isclose(gamma, _SELU_GAMMA, rel_tol=1e-6):
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def _flattened(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """As before version 13: over everything from the axis on."""

    def run(x: Tensor, *, axis: int = 1) -> Tensor:
        axis %= x.dim()
        return function(x.flatten(axis), axis).reshape(x.shape)

    return run


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(to)
    known: dict[str, torch.dtype] = {
        "float32": torch.float32,
        "float64": torch.float64,
        "int64": torch.int64,
        "int32": torch.int32,
        "bool": torch.bool,
    }
    if str(kind) not in known:
        raise NotImplementedError(f"a cast to {kind} is not supported")
    return x.to(known[str(kind)])


def _cast_like(x: Value, like: Tensor, *, saturate: int = 1) -> Value:
    """A number beside a tensor takes its type by itself."""
    return x if isinstance(x, np.ndarray) and x.ndim == 0 else tensor(x).to(like.dtype)


POINTWISE: dict[str, Callable[..., Any]] = {
    "Add": _with_operands(operator.add),
    "Sub": _with_operands(operator.sub),
    "Mul": _with_operands(operator.mul),
    "Div": _with_operands(_divide),
    "Pow": _with_operands(operator.pow),
    "Sum": lambda *values: functools.reduce(operator.add, map(operand, values)),
    "Min": _of_all(_smallest),
    "Max": _of_all(_largest),
    "Equal": _with_operands(operator.eq),
    "Greater": _with_operands(operator.gt),
    "GreaterOrEqual": _with_operands(operator.ge),
    "Less": _with_operands(operator.lt),
    "LessOrEqual": _with_operands(operator.le),
    "Not": torch.logical_not,
    "Where": lambda condition, a, b: torch.where(tensor(condition), operand(a), operand(b)),
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Erf": torch.erf,
    "Tanh": torch.tanh,
    "Relu": F.relu,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": _prelu,
    "Clip": _clip,
    "Sigmoid": torch.sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Selu": _selu,
    "Softplus": F.softplus,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Softmax": lambda x, *, axis=-1: F.softmax(x, axis),
    "LogSoftmax": lambda x, *, axis=-1: F.log_softmax(x, axis),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": lambda x: x,
    "Dropout": lambda x, ratio=0.5, training_mode=None, *, seed=0: x,
}
POINTWISE_BEFORE_13: dict[str, Callable[..., Any]] = {
    "Softmax": _flattened(F.softmax),
    "LogSoftmax": _flattened(F.log_softmax),
}
