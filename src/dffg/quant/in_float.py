"""What is computed in float, and what keeps it from integers: for the report, since nothing is decided here."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import Tensor, fx

from dffg.graph.ends import INPUT, JOIN
from dffg.graph.nodes import BATCH_NORM, CONVOLUTIONS, WEIGHTED, aten, calls, is_stored
from dffg.quant.operators import COPY
from dffg.quant.placement import (
    ELEMENTWISE,
    Placement,
    after_activation,
    commutes,
    integer_inputs,
    is_fused_padding,
    tensors_read,
)
from dffg.targets import Target

# They return several tensors.
_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default)
_REASONS: tuple[tuple[tuple[Any, ...], str], ...] = (
    (_RECURRENT, "recurrent: what it carries from step to step is not quantized"),
    ((BATCH_NORM,), "BatchNorm without a layer of its own to fold into"),
    ((aten.pad.default, aten.constant_pad_nd.default), "padding with more than zeros, or for more than convolutions"),
    (tuple(WEIGHTED), "weight or bias that is computed, not stored"),
    (ELEMENTWISE, "operands that are not two activations, or a factor beside them"),
)


def float_operations(module: fx.GraphModule, placement: Placement, target: Target) -> dict[str, str]:
    """Operators that are computed in float, each as `node (kind)`, and what keeps it from integers."""
    return {
        f"{node.name} ({_kind(node)})": _why(node, target)
        for node in module.graph.nodes
        if _is_in_float(node, placement.source, target)
    }


def _kind(node: fx.Node) -> str:
    """`aten.silu.default` is a silu."""
    return str(node.target).partition(".")[2].partition(".")[0]


def _is_in_float(node: fx.Node, source: dict[fx.Node, fx.Node], target: Target) -> bool:
    if tensors_read(node, target):
        return calls(node, *CONVOLUTIONS) and not target.float_convolution and after_activation(node) not in source
    if calls(node, *_RECURRENT):
        return True
    if (
        node.op != "call_function"
        or calls(node, INPUT, JOIN, COPY, getitem)
        or not isinstance(node.meta.get("val"), Tensor)
    ):
        return False
    return not (node in source and commutes(node)) and not is_fused_padding(node)


def _why(node: fx.Node, target: Target) -> str:
    if tensors_read(node, target):
        return f"output of the network, and {target.name} convolves integers to integers only"
    if commutes(node):
        return "result that nothing reads as integers"
    if calls(node, *_PRODUCTS):
        stored = any(map(is_stored, node.args))
        return "matrix product that is no linear layer" if stored else "product of activations, none of them a weight"
    known = (reason for operators, reason in _REASONS if calls(node, *operators) and not integer_inputs(node))
    return next(known, f"no integer kernel known in {target.name}")
