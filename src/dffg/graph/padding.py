"""Zeros put around a map before a depthwise convolution become a part of its kernel, which makes no copy of the map."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.nn import functional

from dffg.graph.nodes import add_tensor, argument, aten, calls, is_depthwise, is_stored, pads_with_zeros, weight_of


def absorb_padding_(module: fx.GraphModule) -> None:
    """Rewrite `conv(pad(x))` as one convolution, in place, where the convolution is depthwise and pads nothing itself.

    TensorFlow puts more zeros behind a map than before it, `before` < `after`. A convolution puts `after` on both
    sides; with `after - before` zeros in front of its kernel it then reads the same values. In a depthwise convolution,
    whose time is that of its memory, the larger kernel costs nothing.
    """
    for pad in list(module.graph.nodes):
        if _is_absorbed(module, pad):
            (convolution,) = pad.users
            _absorb(module, pad, convolution)
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_absorbed(module: fx.GraphModule, pad: fx.Node) -> bool:
    if not (calls(pad, aten.pad.default) and pads_with_zeros(pad)) or len(pad.users) != 1:
        return False
    (reader,) = pad.users
    return (
        calls(reader, aten.conv2d.default)
        and reader.args[0] is pad
        and is_stored(reader.args[1])
        and is_depthwise(module, reader)
        and not any(argument(reader, 4, [0, 0]))
        and all(step == 1 for step in argument(reader, 5, [1, 1]))
        and len(argument(pad, 1)) == 4
        and all(0 <= before <= after for before, after in _sides(pad))
    )


def _sides(pad: fx.Node) -> list[tuple[int, int]]:
    """Zeros before and after, of the rows first."""
    left, right, top, bottom = argument(pad, 1)
    return [(top, bottom), (left, right)]


def _absorb(module: fx.GraphModule, pad: fx.Node, convolution: fx.Node) -> None:
    (top, bottom), (left, right) = _sides(pad)
    kernel = functional.pad(weight_of(module, convolution), (right - left, 0, bottom - top, 0)).contiguous()
    rest: list[Any] = [argument(convolution, 2), argument(convolution, 3, [1, 1]), [bottom, right]]
    stored = add_tensor(module, f"{convolution.name}_padded_weight", kernel)
    convolution.args = (pad.args[0], stored, *rest, [1, 1], argument(convolution, 6, 1))
