"""Small helpers over torch.fx graphs, shared by every pass."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from dffg.errors import DffgError, InputError
from dffg.machine.device import device_of

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
LINEAR = aten.linear.default
WEIGHTED = CONVOLUTIONS | {LINEAR}
BATCH_NORM = aten.batch_norm.default
AVERAGE_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
# Every layer is a few operations: the deepest published networks have thousands. Each costs milliseconds of every pass.
_MOST_OPERATIONS = 100_000


def refuse_endless(operations: int) -> None:
    """Raise InputError where a graph has more operations than any network, before time is spent on it."""
    if operations > _MOST_OPERATIONS:
        raise InputError(
            f"the network has {operations} operations, and at most {_MOST_OPERATIONS} are taken; quantize it in parts."
        )


def calls(node: Any, *targets: Any) -> bool:
    """Whether `node` calls one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """Positional argument of a call, or its default where the graph leaves it out."""
    return node.args[index] if len(node.args) > index else default


def pads_with_zeros(node: Any) -> bool:
    """Whether `node` puts zeros around a tensor."""
    if calls(node, aten.constant_pad_nd.default):
        return not argument(node, 2, 0)
    return calls(node, aten.pad.default) and argument(node, 2, "constant") == "constant" and not argument(node, 3, 0)


def gives_floats(node: fx.Node) -> bool:
    """Whether the result of `node` is one tensor of floating-point numbers; chunk and lstm give several."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def is_stored(node: Any) -> bool:
    """Whether `node` reads a parameter, buffer or constant of the module."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def stored_tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    value = attrgetter(str(node.target))(module)
    assert isinstance(value, Tensor)
    return value.detach()


def optional_tensor(module: fx.GraphModule, node: fx.Node | None) -> Tensor | None:
    """As `stored_tensor`, passing None through."""
    return None if node is None else stored_tensor(module, node)


def layer_name(node: fx.Node) -> str:
    """The name the user knows a layer by: the path of the module that owns its weight, else the node's own."""
    weight = argument(node, 1)
    path = str(weight.target).rpartition(".")[0] if is_stored(weight) else ""
    return path or node.name


def weight_of(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    """Weight of a convolution or linear layer."""
    return stored_tensor(module, layer.args[1])  # type: ignore[arg-type]


def is_depthwise(module: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether every channel of a convolution reads one channel, in groups of one."""
    return groups_of(layer) > 1 and weight_of(module, layer).shape[1] == 1


def groups_of(layer: fx.Node) -> int:
    """Groups of a convolution; 1 of a linear layer."""
    return int(argument(layer, 6, 1))


def nodes_by_name(module: fx.GraphModule) -> dict[str, fx.Node]:
    """Every node of a graph."""
    return {node.name: node for node in module.graph.nodes}


def needed(end: fx.Node, start: fx.Node) -> set[fx.Node]:
    """The nodes that compute `end` from `start`, without the latter."""
    found: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A module with its own graph, whose tensors are shared with the original."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    return fx.GraphModule(module, graph)


def with_output(module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """The part of a graph that computes these nodes, returned as a tuple; everything after them is cut off."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copies)
    graph.output(tuple(copies[node] for node in nodes))
    part = fx.GraphModule(module, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def standalone(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with only the tensors that are read, each by itself and in the order that files have."""
    read = {str(node.target): stored_tensor(module, node) for node in module.graph.nodes if is_stored(node)}
    copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in read.items()}
    return fx.GraphModule(copies, copy_module(module).graph)


def add_tensor(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Store `value` as a buffer and read it at the start of the graph, where every pass may use it.

    The name must be free; two passes must not write the same one.
    """
    if hasattr(module, name):
        raise ValueError(f"{name} is stored twice")
    module.register_buffer(name, value)
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        return module.graph.get_attr(name)


def fold_constants_(module: fx.GraphModule) -> None:
    """Compute in place what depends on stored tensors alone, such as a weight that is transposed before its use.

    The result is stored beside the first of these tensors, so that layers keep their names.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes or not all(map(is_stored, node.all_input_nodes)):
            continue
        with torch.no_grad():
            arguments = fx.map_arg((node.args, node.kwargs), lambda source: stored_tensor(module, source))
            value = node.target(*arguments[0], **arguments[1])
        if isinstance(value, Tensor):
            _store_in_place(module, node, value)
    module.graph.eliminate_dead_code()
    module.recompile()


def _store_in_place(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    path, name = str(node.all_input_nodes[0].target).rpartition(".")[0], f"{node.name}_computed"
    module.get_submodule(path).register_buffer(name, value.contiguous())
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(f"{path}.{name}" if path else name)
    stored.meta.update(node.meta)
    node.replace_all_uses_with(stored)
    module.graph.erase_node(node)


class Tap(fx.Interpreter):
    """Runs a graph and hands every named result to `visit`, whose answer is used in its place."""

    def __init__(self, module: fx.GraphModule, visit: Callable[[str, Any], Any]) -> None:
        super().__init__(module)
        self._visit = visit

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; what `visit` raises arrives without what torch.fx adds to it."""
        try:
            return super().run(*args, **kwargs)
        except DffgError as error:
            error.args = (str(error).partition("\n\nWhile executing")[0],)
            raise

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and let `visit` see, or replace, its result."""
        return self._visit(n.name, super().run_node(n))


def moved(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A graph with all that it reads on a device, and that makes its own tensors there; itself where it is there."""
    if device_of(module) == device:
        return module
    read = {str(node.target): stored_tensor(module, node) for node in module.graph.nodes if is_stored(node)}
    copy = fx.GraphModule({name: tensor.to(device) for name, tensor in read.items()}, copy_module(module).graph)
    for node in copy.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda value: _there(value, device))
    copy.recompile()
    return copy


def _there(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) else value
