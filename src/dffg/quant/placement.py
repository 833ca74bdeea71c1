"""Which tensors are quantized, so that the runtime finds an integer kernel around every heavy layer.

Runtimes for CPUs fuse `dequantize -> operator -> quantize` into one integer kernel where every input and the output of
the operator is quantized. ReLU and ReLU6 between a layer and its quantization cost nothing: the unsigned range of the
result starts at 0 and ends at most at 6, so saturation does their work and they are left out.

TensorRT decides by what is read (`Target.reads_only`): the inputs of convolutions, matrix products and average pooling
are quantized and their results are not, so that activations and sums join the layer before them. Of the operands of a
sum, the one that its layer computes last joins it, and the others are quantized. Max pooling and what rearranges
commute with quantization. Source: NVIDIA's documentation of explicit quantization,
docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dffg.graph.ends import answers
from dffg.graph.nodes import (
    AVERAGE_POOLS,
    BATCH_NORM,
    CONVOLUTIONS,
    LINEAR,
    WEIGHTED,
    argument,
    aten,
    calls,
    copy_module,
    gives_floats,
    is_stored,
    nodes_by_name,
    pads_with_zeros,
)
from dffg.quant.operators import COPY, GLOBAL_AVERAGE_POOL
from dffg.targets import ONNXRUNTIME, Target

ELEMENTWISE = (aten.add.Tensor, aten.mul.Tensor)
POOLS = (*AVERAGE_POOLS, GLOBAL_AVERAGE_POOL)
MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
_ADAPTIVE_POOLS = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
_INTEGER_OPERATORS = (*WEIGHTED, *ELEMENTWISE, aten.cat.default, *POOLS)
_RELUS = (aten.relu.default, aten.relu6.default)
# Their results are their inputs' values, so they keep the inputs' scale and cost no rounding.
_REARRANGING = (
    *MAX_POOLS,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.view.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """source: quantized node -> node whose range it uses, itself in most cases; absorbed: activations to leave out;
    answers: of the nodes whose range is used, those behind the last layer of which no BatchNorm knows how large they
    get."""

    source: dict[fx.Node, fx.Node]
    absorbed: tuple[fx.Node, ...]
    answers: frozenset[fx.Node] = frozenset()


def prepare(module: fx.GraphModule) -> fx.GraphModule:
    """Write global average pooling, which has several spellings, as the one operator with an integer kernel.

    Pooling without padding, of windows that reach beyond its end, counts none: that means the same, and runtimes divide
    by what lies within.
    """
    module = copy_module(module)
    for node in list(module.graph.nodes):
        if _is_global_pool(node):
            _replace_global_pool(module, node)
        elif calls(node, *AVERAGE_POOLS) and not any(argument(node, 3, [])) and argument(node, 4):
            node.args = (*node.args[:5], False, *node.args[6:])
    module.recompile()
    return module


def place(module: fx.GraphModule, target: Target = ONNXRUNTIME, known: Collection[str] = ()) -> Placement:
    """Decide what is quantized in a folded and prepared graph; `known` are nodes of which BatchNorm tells the size."""
    wanted = {_origin(before_padding(tensor)) for node in module.graph.nodes for tensor in tensors_read(node, target)}
    if not target.reads_only:
        wanted |= _results_of_integer_operators(module, target)
    nodes = nodes_by_name(module)
    source: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        first = node.args[0] if node.args else None
        if keeps_range(node) and isinstance(first, fx.Node) and first in source:
            source[node] = source[first]
        elif node in wanted:
            source[node] = node
    if target.joins_scales:
        source = _joined(source)
    absorbed = tuple(node for node in source if _is_absorbable(node) and source[node] is node and not target.signed)
    return Placement(
        source=source,
        absorbed=absorbed,
        answers=frozenset(source.values()) - _before(module, (*WEIGHTED, BATCH_NORM)) - {nodes[name] for name in known},
    )


def integer_inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors an integer kernel for this node reads; empty where there is no such kernel."""
    if calls(node, *WEIGHTED):
        readable = is_stored(node.args[1]) and (argument(node, 2) is None or is_stored(argument(node, 2)))
        return [node.args[0]] if readable else []  # type: ignore[list-item]
    if calls(node, *ELEMENTWISE):
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and not is_stored(operand)]
        is_plain = len(operands) == 2 and node.kwargs.get("alpha", 1) == 1
        return operands if is_plain and all(map(gives_floats, operands)) else []
    if calls(node, aten.cat.default):
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        return parts if all(map(gives_floats, parts)) else []
    return [node.args[0]] if calls(node, *POOLS) else []  # type: ignore[list-item]


def tensors_read(node: fx.Node, target: Target) -> list[fx.Node]:
    """The tensors that a target wants quantized for this node."""
    inputs = integer_inputs(node)
    if not target.reads_only or calls(node, *WEIGHTED, *POOLS):
        return inputs
    if not calls(node, aten.add.Tensor):
        return []
    joining = [tensor for tensor in inputs if calls(tensor, *WEIGHTED) and list(tensor.users) == [node]]
    return [tensor for tensor in inputs if tensor is not max(joining, default=None)]


def before_padding(node: fx.Node) -> fx.Node:
    """The tensor that a zero padding in front of convolutions reads: the padding becomes part of the convolution."""
    return node.args[0] if is_fused_padding(node) else node  # type: ignore[return-value]


def clip_bounds(node: Any) -> tuple[float, float] | None:
    """The interval that an activation clips to, such as (0, inf) for ReLU; None where the node is something else."""
    if calls(node, aten.clamp.default):
        low, high = argument(node, 1), argument(node, 2)
        return -math.inf if low is None else low, math.inf if high is None else high
    if calls(node, aten.hardtanh.default):
        return argument(node, 1, -1), argument(node, 2, 1)
    if calls(node, *_RELUS):
        return 0, 6 if calls(node, aten.relu6.default) else math.inf
    return None


def is_fused_padding(node: fx.Node) -> bool:
    """Whether this is a zero padding that only convolutions read."""
    return pads_with_zeros(node) and all(calls(user, *WEIGHTED) and user.args[0] is node for user in node.users)


def _results_of_integer_operators(module: fx.GraphModule, target: Target) -> set[fx.Node]:
    outputs, read_on = answers(module), _before(module, _INTEGER_OPERATORS)
    wanted: set[fx.Node] = set()
    for node in module.graph.nodes:
        result = after_activation(node)
        # Where it can, a final layer writes float from integer inputs: rounding logits to 8 bits would only add ties,
        # and clip them. Softmax or the like may follow; a convolution needs integers then, or computes in float.
        is_answer = result in outputs if calls(node, *CONVOLUTIONS) else calls(node, LINEAR) and node not in read_on
        if integer_inputs(node) and not (is_answer and target.float_answer):
            wanted.add(result)
    return wanted


def _before(module: fx.GraphModule, targets: Collection[Any]) -> set[fx.Node]:
    """What is read, at once or further on, by one of these operators."""
    found: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node in found or calls(node, *targets):
            found |= set(node.all_input_nodes)
    return found


def _joined(source: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """With the range of a concatenation, which holds those of its operands, for these as well.

    Of several that share operands the last counts, which holds the others in networks like DenseNet.
    """
    for node in list(source):
        if calls(node, aten.cat.default):
            parts = {source[operand] for operand in node.args[0]}  # type: ignore
            source = {tensor: source[node] if used in parts else used for tensor, used in source.items()}
    return source


def _origin(node: fx.Node) -> fx.Node:
    """Where the values of a rearranged tensor come from: quantized there, it is quantized everywhere."""
    while calls(node, *_REARRANGING):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_absorbable(node: fx.Node) -> bool:
    """ReLU, or a clip to [0, 6] or [0, inf): what an unsigned range with the right end does by itself."""
    return clip_bounds(node) in ((0, 6), (0, math.inf))


def after_activation(node: fx.Node) -> fx.Node:
    """The node that carries the result of a layer: an activation that is left out, else the layer itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _is_absorbable(users[0]) else node


def keeps_range(node: fx.Node) -> bool:
    """Whether the values of a node are those of its input, or end at 0 where they are unsigned."""
    return calls(node, *_REARRANGING, *_RELUS)


def commutes(node: fx.Node) -> bool:
    """Whether quantizing what a node reads is as good as quantizing its result."""
    return keeps_range(node) or _is_absorbable(node) or calls(node, aten.cat.default, COPY)


def _is_global_pool(node: fx.Node) -> bool:
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() < 3:
        return False
    if calls(node, *_ADAPTIVE_POOLS):
        return set(node.args[1]) == {1}  # type: ignore[arg-type]
    spatial = list(range(2, value.dim()))
    return calls(node, aten.mean.dim) and sorted(dim % value.dim() for dim in node.args[1]) == spatial  # type: ignore


def _replace_global_pool(module: fx.GraphModule, node: fx.Node) -> None:
    flat = calls(node, aten.mean.dim) and not argument(node, 2, False)
    ones = [1] * (node.args[0].meta["val"].dim() - 2)  # type: ignore
    with module.graph.inserting_before(node):
        pooled = module.graph.call_function(GLOBAL_AVERAGE_POOL, (node.args[0],))
        pooled.meta["val"] = node.meta["val"].reshape(*node.meta["val"].shape[:2], *ones)
        result = module.graph.call_function(aten.flatten.using_ints, (pooled, 1)) if flat else pooled
        result.meta["val"] = node.meta["val"] if flat else pooled.meta["val"]
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
