"""ReLU and its like, whose gradient is written over the one that arrives, for the probe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from dffg.graph.nodes import CONVOLUTIONS, argument, aten, calls

# Lowest and highest value that is passed on.
_RELUS = {aten.relu.default: (0.0, math.inf), aten.relu6.default: (0.0, 6.0)}
_CLIPS = (*_RELUS, aten.hardtanh.default)


def own_clips_(module: fx.GraphModule) -> None:
    """Call `clipped` in place of every clip, in the graph; its gradient is written in place where it `owns_gradient`.

    Memory that is not written for the first time is half of the traffic of this operation, which does next to no
    arithmetic.
    """
    for node in module.graph.nodes:
        if calls(node, *_CLIPS):
            low, high = _RELUS.get(node.target) or (argument(node, 1, -1.0), argument(node, 2, 1.0))
            node.target, node.args, node.kwargs = clipped, (node.args[0], low, high, owns_gradient(node)), {}
    module.recompile()


def owns_gradient(node: fx.Node) -> bool:
    """Whether the gradient that arrives at a node is a tensor of nobody else, which may be written to: where one
    operator reads it, and that makes a new tensor of the gradient that it hands on, and hands it on to nobody else."""
    readers = list(node.users)
    return len(readers) == 1 and calls(readers[0], *CONVOLUTIONS, clipped, aten.silu.default)


def clipped(values: Tensor, low: float, high: float, owned: bool = False) -> Tensor:
    """Values clipped to [low, high]; the gradient is that of `hardtanh`, 0 at the ends.

    owned: whether the gradient that comes back is a tensor of nobody else, which may be written to.
    """
    result: Tensor = Clip.apply(values, low, high, owned)
    return result


class Clip(torch.autograd.Function):
    """`clipped`. What is kept for the gradient is the result, which the next layer keeps as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float, owned: bool) -> Tensor:
        """The clipped values."""
        result = aten.hardtanh(values, low, high)
        ctx.save_for_backward(result)
        ctx.ends, ctx.owned = (low, high), owned
        assert isinstance(result, Tensor)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient where nothing was clipped."""
        (result,) = ctx.saved_tensors
        if ctx.owned:
            passed = aten.hardtanh_backward.grad_input(gradient, result, *ctx.ends, grad_input=gradient)
        else:
            passed = aten.hardtanh_backward(gradient, result, *ctx.ends)
        return passed, None, None, None
