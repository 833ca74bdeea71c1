"""Several inputs and several outputs of a network, as one of each.

Everything between capture and export works on one tensor in and one tensor out. A network that has more of either gets
two operators at its ends: `INPUT` cuts one input out of examples laid end to end, and `JOIN` lays outputs, which have
names and widths, end to end. Files get their inputs and outputs back (`split_ends`), and what runs a file hides them
again (`split`, `join`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dffg.graph.nodes import calls, copy_module
from dffg.spec import Array, ImageSpec, cut

_library = torch.library.Library("dffg", "FRAGMENT")
_library.define("input(Tensor joined, str name, int start, int[] shape) -> Tensor")
_library.define("join(Tensor[] outputs, str[] names, int[] widths) -> Tensor")


def _run_input(joined: Tensor, name: str, start: int, shape: list[int]) -> Tensor:
    part = joined[:, start : start + math.prod(shape)].reshape(-1, *shape)
    # Convolutions on the CPU are faster in this layout.
    return part.contiguous(memory_format=torch.channels_last if len(shape) == 3 else torch.contiguous_format)


def _run_join(outputs: list[Tensor], names: list[str], widths: list[int]) -> Tensor:
    return torch.cat([output.reshape(output.shape[0], -1).to(torch.float32) for output in outputs], 1)


_library.impl("input", _run_input, "CompositeImplicitAutograd")
_library.impl("join", _run_join, "CompositeImplicitAutograd")

INPUT = torch.ops.dffg.input.default
JOIN = torch.ops.dffg.join.default


def join_inputs(graph: fx.Graph, names: Sequence[str]) -> None:
    """Give a graph one input, of which every input it had is a part, called by these names."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(inputs[0]):
        joined = graph.placeholder("inputs")
    joined.meta["val"] = torch.cat([node.meta["val"].flatten(1) for node in inputs], 1)
    start = 0
    for node, name in zip(inputs, names, strict=True):
        shape = [int(size) for size in node.meta["val"].shape[1:]]
        with graph.inserting_before(node):
            part = graph.call_function(INPUT, (joined, name, start, shape))
        part.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(part)
        graph.erase_node(node)
        start += math.prod(shape)


def join_outputs(graph: fx.Graph, outputs: Sequence[fx.Node], names: Sequence[str]) -> fx.Node:
    """One node for several outputs, at the end of a graph."""
    values = [node.meta["val"] for node in outputs]
    widths = [math.prod(int(size) for size in value.shape[1:]) for value in values]
    joined = graph.call_function(JOIN, (list(outputs), list(names), widths))
    joined.meta["val"] = _run_join(values, list(names), widths)
    return joined


def answers(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose results are the outputs."""
    output: Any = module.graph.output_node().args[0]
    return list(output.args[0]) if calls(output, JOIN) else [output]


def columns(module: fx.GraphModule) -> dict[str, slice]:
    """Where each of several outputs lies among the columns of the joined one; empty where there is one output."""
    output: Any = module.graph.output_node().args[0]
    if not calls(output, JOIN):
        return {}
    found, start = {}, 0
    for name, width in zip(*output.args[1:], strict=True):
        found[name] = slice(start, start + width)
        start += width
    return found


def split_ends(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph with the inputs and outputs that the network had before they were joined."""
    module = copy_module(module)
    graph = module.graph
    first = next(node for node in graph.nodes if node.op == "placeholder")
    parts = [node for node in graph.nodes if calls(node, INPUT)]
    # Readers may be in any order; inputs are in that of their starts.
    for part in sorted(parts, key=lambda node: node.args[2]):
        with graph.inserting_before(first):
            own = graph.placeholder(part.args[1])
        own.meta["val"] = part.meta["val"]
        part.replace_all_uses_with(own)
        graph.erase_node(part)
    if parts:
        graph.erase_node(first)
    _split_outputs(graph)
    module.recompile()
    return module


def _split_outputs(graph: fx.Graph) -> None:
    end = graph.output_node()
    results = end.args[0] if isinstance(end.args[0], (tuple, list)) else (end.args[0],)
    joined = [node for node in results if calls(node, JOIN)]
    if joined:
        split = [part for node in results for part in (node.args[0] if calls(node, JOIN) else [node])]  # type: ignore
        end.args = (tuple(split),)
        for node in joined:
            graph.erase_node(node)  # type: ignore[arg-type]


def input_names(module: fx.GraphModule, default: str) -> list[str]:
    """Names of the inputs, before or after they were split; `default` for a single one."""
    inputs = sorted((node for node in module.graph.nodes if calls(node, INPUT)), key=lambda node: node.args[2])
    return [str(node.args[1]) for node in inputs] or [default]


def output_names(module: fx.GraphModule, default: str) -> list[str]:
    """Names of the outputs, before they are split; `default` for a single one."""
    return list(columns(module)) or [default]


def examples(spec: ImageSpec, count: int) -> tuple[Tensor, ...]:
    """Inputs of this many examples, all 0."""
    return tuple(torch.zeros(count, *part.shape) for part in spec.parts)


def split(batch: Array, shapes: Sequence[Sequence[int]]) -> list[Array]:
    """Inputs of a file, which take examples of these shapes, from one batch of joined ones."""
    return [batch] if len(shapes) == 1 else cut(batch, shapes)


def join(outputs: Sequence[NDArray[Any]]) -> Array:
    """One array of the outputs of a file."""
    if len(outputs) == 1:
        return outputs[0]
    flat = [output.reshape(len(output), -1).astype(np.float32) for output in outputs]
    return np.ascontiguousarray(np.concatenate(flat, axis=1))
