"""Operators that keep for the gradient with respect to their input only what that needs, for the probe.

A convolution keeps its input for the gradient of its weight, which nobody asks for here. Without it, what a clip makes
is free as soon as it is read, and only what is clipped stays: about half of the memory of a step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from dffg.graph import CONVOLUTIONS, argument, aten, calls, is_stored

# Lowest and highest value that is passed on.
_RELUS = {aten.relu.default: (0.0, math.inf), aten.relu6.default: (0.0, 6.0)}
_CLIPS = (*_RELUS, aten.hardtanh.default)


def make_lean(module: fx.GraphModule) -> None:
    """Call `convolved` and `clipped` in a graph, in place, wherever what else an operator reads is stored."""
    module.add_module("scratch", Scratch())
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        scratch = module.graph.get_attr("scratch")
    for node in module.graph.nodes:
        if calls(node, *CONVOLUTIONS) and all(map(is_stored, filter(None, node.args[1:3]))):
            node.target, node.args = convolved, (scratch, node.target, *node.args)
        elif calls(node, *_CLIPS):
            low, high = _RELUS.get(node.target) or (argument(node, 1, -1.0), argument(node, 2, 1.0))
            node.target, node.args, node.kwargs = clipped, (node.args[0], low, high), {}
    for node in module.graph.nodes:
        if calls(node, clipped):
            node.args = (*node.args, owns_gradient(node), scratch if _is_read_at_once(node) else None)
    module.recompile()


def _is_read_at_once(node: fx.Node) -> bool:
    """Whether the next call is a convolution, and nobody else reads the result."""
    following = node.next
    while is_stored(following):
        following = following.next
    return calls(following, convolved) and list(node.users) == [following]


class Scratch(nn.Module):
    """Memory for tensors of which each is read before the next is made.

    What is made and freed in turn with what stays leaves holes in the heap, which grew to the size of all results. A
    tensor that is kept after all is found out by autograd, for which all of them are one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory = torch.empty(0)

    def like(self, given: Tensor, of: Tensor) -> Tensor:
        """A tensor of whatever values, in shape and memory order as `given`, in type and place as `of`."""
        memory = self._memory
        if memory.numel() < given.numel() or memory.dtype != of.dtype or memory.device != of.device:
            self._memory = memory = of.new_empty(given.numel())
        return memory.detach().as_strided(given.shape, torch.empty_like(given, device="meta").stride())


def owns_gradient(node: fx.Node) -> bool:
    """Whether the gradient that arrives at a node is a tensor of nobody else, which may be written to: where one
    operator reads it, and that makes a new tensor of its own gradient."""
    readers = list(node.users)
    return len(readers) == 1 and calls(readers[0], convolved, clipped, aten.silu.default)


def convolved(scratch: Scratch, convolution: Any, images: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """The result of a convolution, with a gradient with respect to `images` alone."""
    result: Tensor = Convolution.apply(scratch, convolution, images, weight, *rest)
    return result


class Convolution(torch.autograd.Function):
    """`convolved`. Of the input, its gradient needs the shape and the memory order."""

    @staticmethod
    def forward(ctx: Any, scratch: Scratch, convolution: Any, images: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        """As the operator itself; rest: bias, stride, padding, dilation, groups."""
        result: Tensor = convolution(images, weight, *rest)
        ctx.save_for_backward(weight)
        ctx.given, ctx.rest, ctx.scratch = torch.empty_like(images, device="meta"), rest, scratch
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The transposed convolution."""
        (weight,) = ctx.saved_tensors
        # Nothing is read of it.
        unread = ctx.scratch.like(ctx.given, gradient)
        (_, *steps, groups), dims = _completed(ctx.rest, weight.dim() - 2), weight.dim() - 2
        to_input, _, _ = aten.convolution_backward(
            gradient, unread, weight.to(gradient.dtype), None, *steps, False, [0] * dims, groups, [True, False, False]
        )
        gradients: list[Tensor | None] = [None, None, to_input.to(ctx.given.dtype)]
        return tuple(gradients + [None] * (1 + len(ctx.rest)))


def _completed(rest: tuple[Any, ...], dims: int) -> list[Any]:
    """Bias, stride, padding, dilation and groups, with what a call leaves out, an entry for every axis."""
    defaults: list[Any] = [None, [1], [0], [1], 1]
    bias, *steps, groups = [*rest, *defaults[len(rest) :]]
    return [bias, *(list(step) * (dims // len(step)) for step in steps), groups]


def clipped(values: Tensor, low: float, high: float, owned: bool = False, scratch: Scratch | None = None) -> Tensor:
    """Values clipped to [low, high]; the gradient is that of `hardtanh`, 0 at the ends.

    owned: whether the gradient that comes back is a tensor of nobody else. It is then written over: memory that is not
    written for the first time is half of the traffic of this operation, which does next to no arithmetic. scratch:
    where the result may lie, if it is read at once.
    """
    result: Tensor = Clip.apply(values, low, high, owned, scratch)
    return result


class Clip(torch.autograd.Function):
    """`clipped`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float, owned: bool, scratch: Scratch | None) -> Tensor:
        """The clipped values."""
        ctx.save_for_backward(values)
        ctx.ends, ctx.owned = (low, high), owned
        if scratch is None:
            result: Tensor = aten.hardtanh(values, low, high)
        else:
            result = aten.hardtanh.out(values, low, high, out=scratch.like(values, values))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The gradient where nothing was clipped."""
        (values,) = ctx.saved_tensors
        if ctx.owned:
            passed = aten.hardtanh_backward.grad_input(gradient, values, *ctx.ends, grad_input=gradient)
        else:
            passed = aten.hardtanh_backward(gradient, values, *ctx.ends)
        return passed, None, None, None, None
