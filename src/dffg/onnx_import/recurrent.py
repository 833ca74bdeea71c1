"""ONNX operators that walk along a sequence, as torch calls. Their gates lie in another order than torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dffg.onnx_import.values import Value, tensor

# Where torch's gates are among ONNX's: input, output, forget, cell; update, reset, hidden.
_LSTM_GATES, _GRU_GATES = (0, 2, 3, 1), (1, 0, 2)
_LSTM_ACTIVATIONS, _GRU_ACTIVATIONS = ["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh"]


def _lstm(
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Value | None = None,
    initial_hidden: Value | None = None,
    initial_cell: Value | None = None,
    peepholes: Value | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: list[Any] | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse_variants(direction, activations, _LSTM_ACTIVATIONS, lengths, layout)
    if peepholes is not None or input_forget:
        raise NotImplementedError("peepholes and coupled gates are not supported")
    start = [_start(value, x, weight, hidden_size) for value in (initial_hidden, initial_cell)]
    parts, both = _flat(_LSTM_GATES, weight, recurrent, bias), len(weight) > 1
    result, hidden, cell = torch.lstm(x, start, parts, bias is not None, 1, 0.0, False, both, False)
    return _by_direction(result, len(weight)), hidden, cell


def _gru(
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Value | None = None,
    initial_hidden: Value | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: list[Any] | None = None,
    linear_before_reset: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:
    _refuse_variants(direction, activations, _GRU_ACTIVATIONS, lengths, layout)
    if not linear_before_reset:
        raise NotImplementedError("only a reset gate after the product (linear_before_reset=1) is supported")
    start, both = _start(initial_hidden, x, weight, hidden_size), len(weight) > 1
    parts = _flat(_GRU_GATES, weight, recurrent, bias)
    result, hidden = torch.gru(x, start, parts, bias is not None, 1, 0.0, False, both, False)
    return _by_direction(result, len(weight)), hidden


def _refuse_variants(
    direction: str, activations: list[Any] | None, usual: list[str], lengths: Value | None, layout: int
) -> None:
    names = [name.decode() if isinstance(name, bytes) else name for name in activations or []]
    if direction == "reverse":
        raise NotImplementedError("a sequence that is read backwards only is not supported")
    if names and names != usual * (len(names) // len(usual)):
        raise NotImplementedError(f"activations {', '.join(names)} are not supported")
    if lengths is not None:
        raise NotImplementedError("lengths of their own for every sequence are not supported")
    if layout:
        raise NotImplementedError("a batch in front of the sequence (layout=1) is not supported")


def _start(given: Value | None, x: Tensor, weight: Tensor, size: int) -> Tensor:
    """(directions, batch, size); zeros where nothing is given."""
    if given is not None:
        return tensor(given).to(x.dtype)
    return torch.zeros(len(weight), x.shape[1], size, dtype=x.dtype, device=x.device)


def _flat(gates: tuple[int, ...], weight: Tensor, recurrent: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Weights and biases of every direction, one after the other, as torch takes them."""
    found = []
    for index in range(len(weight)):
        both = [] if bias is None else [bias[index, : bias.shape[1] // 2], bias[index, bias.shape[1] // 2 :]]
        found += [_reordered(values, gates) for values in (weight[index], recurrent[index], *both)]
    return found


def _reordered(values: Tensor, gates: tuple[int, ...]) -> Tensor:
    size = values.shape[0] // len(gates)
    return torch.cat([values[gate * size : (gate + 1) * size] for gate in gates])


def _by_direction(result: Tensor, directions: int) -> Tensor:
    """(sequence, batch, directions * size) -> (sequence, directions, batch, size)."""
    separate: Tensor = result.unflatten(2, (directions, result.shape[2] // directions))
    return separate.transpose(1, 2)


RECURRENT: dict[str, Callable[..., Any]] = {"LSTM": _lstm, "GRU": _gru}
