"""A program of torch.export as a functional graph with one input and one output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from dffg.errors import CaptureError
from dffg.graph.ends import join_inputs, join_outputs
from dffg.graph.names import argument_names
from dffg.graph.nodes import AVERAGE_POOLS, BATCH_NORM, CONVOLUTIONS, argument, aten, calls, fold_constants_

_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default)
_IDENTITIES = (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)
_NAMED_PADDINGS: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def functional_module(program: ExportedProgram, input_names: Sequence[str] = ()) -> fx.GraphModule:
    """A plain graph: one input, one output tensor, no in-place calls, nothing twice or without effect in eval mode."""
    source = program.module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(source.graph, copies)
    graph.output(_one_output(graph, outputs, program.call_spec.out_spec))
    for node in list(graph.nodes):
        _make_functional(graph, node)
    _read_batches_nearby(graph)
    _join_inputs(graph, input_names)
    _merge_equal(graph)
    graph.eliminate_dead_code()
    module = fx.GraphModule(source, graph)
    fold_constants_(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _one_output(graph: fx.Graph, outputs: Any, structure: Any) -> fx.Node:
    """The output, or several of them joined, each with the path that leads to it in what the network returns."""
    leaves = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    paths, _ = tree_flatten_with_path(tree_unflatten(range(len(leaves)), structure))
    found: dict[str, Any] = {}
    for (path, _), leaf in zip(paths, leaves, strict=True):
        name = _path_name(path)
        if name in found:
            raise CaptureError(f"two outputs of the network are called {name}; name one of them otherwise.")
        if leaf is not None:
            found[name] = leaf
    for name, leaf in found.items():
        _check_output(f"output {name}" if name else "the output", leaf, is_joined=len(found) > 1)
    if not found:
        raise CaptureError("the network returns no tensor.")
    return next(iter(found.values())) if len(found) == 1 else join_outputs(graph, list(found.values()), list(found))


def _check_output(shown: str, leaf: Any, is_joined: bool) -> None:
    value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
    if not isinstance(value, Tensor):
        raise CaptureError(f"{shown} of the network is no tensor; return tensors only.")
    if is_joined and (value.dim() == 0 or isinstance(value.shape[0], int)):
        raise CaptureError(f"{shown} of the network has no batch; return what depends on the input only.")
    # How far apart two numbers are that name something says nothing of what quantization has done; beside scores, as of
    # a detector, they may stay.
    if not is_joined and not value.is_floating_point():
        raise CaptureError(
            f"{shown} of the network is {value.dtype}, which cannot be compared as a quantity; return the scores that "
            "it comes from, without argmax or comparison."
        )


def _path_name(path: Any) -> str:
    """`[0]['out'].boxes` as 0.out.boxes."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path)


def _join_inputs(graph: fx.Graph, names: Sequence[str]) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) < 2:
        return
    names = names or [node.name for node in inputs]
    unused = [name for name, node in zip(names, inputs, strict=True) if not node.users]
    if unused:
        raise CaptureError(f"the network does not use its input {unused[0]}; leave it out.")
    join_inputs(graph, argument_names(names))


def _read_batches_nearby(graph: fx.Graph) -> None:
    """`x.view(x.size(0), -1)` reads the batch of x.

    torch.export reads it of the input for the whole network: an edge that would make all between one block.
    """
    for size in [node for node in graph.nodes if calls(node, aten.sym_size.int)]:
        for user in list(size.users):
            tensor = next((part for part in user.args if isinstance(part, fx.Node) and _has_batch(part, size)), None)
            if tensor is None or tensor is size.args[0]:
                continue
            with graph.inserting_before(user):
                own = graph.call_function(aten.sym_size.int, (tensor, 0))
            own.meta["val"] = size.meta["val"]
            user.replace_input_with(size, own)


def _has_batch(node: fx.Node, size: fx.Node) -> bool:
    """Whether the first size of a tensor is what a node gives, for every batch."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 0 and str(value.shape[0]) == str(size.meta["val"])


def _merge_equal(graph: fx.Graph) -> None:
    """Compute what is computed twice once, as exporters do: each result is quantized once, in the file too."""
    seen: dict[tuple[Any, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        read = fx.map_arg((node.args, node.kwargs), _identity)
        earlier = seen.setdefault((node.target, repr(read)), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def _identity(node: fx.Node) -> Any:
    """What is written of a node that is read: its name or, of a stored tensor, where that is stored."""
    return node.target if node.op == "get_attr" else node


def _make_functional(graph: fx.Graph, node: fx.Node) -> None:
    if node.op != "call_function":
        return
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        node.target = _out_of_place(node.target)
    if calls(node, *_NAMED_PADDINGS):
        _write_padding_out(graph, node)
    if calls(node, *CONVOLUTIONS) and _misses_its_input(node):
        _pad_beforehand(graph, node)
    if calls(node, aten.clamp.default):
        # Of an integer among them torch's exporter makes a tensor, and then finds no translation.
        bounds = (argument(node, 1, node.kwargs.get("min")), argument(node, 2, node.kwargs.get("max")))
        node.args = (node.args[0], *(None if bound is None else float(bound) for bound in bounds))
        node.kwargs = {}
    if calls(node, *AVERAGE_POOLS):
        _divide_as_everywhere(graph, node)
    if calls(node, aten.instance_norm.default) and not argument(node, 5):
        # With statistics of its own, its arguments and what it computes are BatchNorm's.
        node.target = BATCH_NORM
    if calls(node, aten.view.default):
        # Without the copies that are left out below, the memory may lie otherwise.
        node.target = aten.reshape.default
    if calls(node, aten.mean.dim) and not argument(node, 1):
        # None and [] are all axes; torch's exporter writes an invalid file of None.
        node.args = (node.args[0], list(range(node.args[0].meta["val"].dim())), *node.args[2:])  # type: ignore[union-attr]
    if calls(node, *_DROPOUTS):
        _refuse_active(node)
    if calls(node, *_DROPOUTS, *_IDENTITIES):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)


def _divide_as_everywhere(graph: fx.Graph, pool: fx.Node) -> None:
    """Average pooling that exporters and runtimes divide as torch does."""
    dims = pool.args[0].meta["val"].dim() - 2  # type: ignore[union-attr]
    kernel, padding = ([*sizes] * (dims // len(sizes)) for sizes in (pool.args[1], argument(pool, 3, [0])))  # type: ignore
    rounds_up, counts_padding, divisor = argument(pool, 4, False), argument(pool, 5, True), argument(pool, 6)
    if divisor and not rounds_up:
        _multiply_behind(graph, pool, math.prod(kernel) / divisor)
        pool.args = (pool.args[0], kernel, argument(pool, 2, []), padding, False, True)
    elif rounds_up and counts_padding and any(padding):
        _pad_pool_beforehand(graph, pool, padding)


def _multiply_behind(graph: fx.Graph, pool: fx.Node, factor: float) -> None:
    """torch's exporter leaves `divisor_override` out."""
    with graph.inserting_after(pool):
        result = graph.call_function(aten.mul.Tensor)
    result.meta["val"] = pool.meta["val"]
    pool.replace_all_uses_with(result)
    result.args = (pool, factor)


def _pad_pool_beforehand(graph: fx.Graph, pool: fx.Node, padding: list[int]) -> None:
    """Where windows reach beyond padding that counts, integer kernels divide otherwise (ONNX Runtime 1.32, OpenVINO).

    Left as it is where a last window would begin in the padding: there is none in torch.
    """
    source, kernel, stride = pool.args[0], pool.args[1], argument(pool, 2, [])
    padded = _padded(graph, pool, source, [side for size in reversed(padding) for side in (size, size)])  # type: ignore
    arguments = (kernel, stride, [0] * len(padding), True, False)
    if pool.target(padded.meta["val"], *arguments).shape == pool.meta["val"].shape:  # type: ignore[operator]
        pool.args = (padded, *arguments)
    else:
        graph.erase_node(padded)


def _refuse_active(dropout: fx.Node) -> None:
    _, share, is_training = dropout.args
    if share and is_training and dropout.users:
        raise CaptureError(
            f"dropout is active ({dropout.name}), so the same input gives other answers. Write F.dropout(..., "
            "training=self.training), as it is active by default, and call model.eval() before torch.export."
        )


def _write_padding_out(graph: fx.Graph, node: fx.Node) -> None:
    """`padding="same"` as numbers, so that later passes know one form of a convolution.

    Where an odd total cannot be halved, the larger half comes last, in a padding of its own.
    """
    defaults = (None, None, None, [1], "valid", [1], 1)
    arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
    source, weight, bias, strides, padding, dilations, groups = arguments
    kernel = weight.meta["val"].shape[2:]
    strides, dilations = (list(values) * (len(kernel) // len(values)) for values in (strides, dilations))
    totals = [d * (size - 1) if padding == "same" else 0 for d, size in zip(dilations, kernel)]
    if any(total % 2 for total in totals):
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        source, totals = _padded(graph, node, source, sides), [0] * len(totals)
    node.args = (source, weight, bias, strides, [total // 2 for total in totals], dilations, groups)
    node.target = _NAMED_PADDINGS[node.target]


def _misses_its_input(node: fx.Node) -> bool:
    """Whether a column of a convolution's result reads nothing but padding.

    Where it has a bias and its input lies in the channels_last layout, oneDNN crashes at a block of such columns (3.12
    in torch 2.14, seen of dilated kernels only: https://github.com/uxlfoundation/oneDNN/issues/5942).
    """
    width, kernel = (part.meta["val"].shape[-1] for part in node.args[:2])  # type: ignore[union-attr]
    stride, padding, dilation = (argument(node, index, [usual])[-1] for index, usual in ((3, 1), (4, 0), (5, 1)))
    reach = dilation * (kernel - 1) + 1
    starts = range(-padding, width + padding - reach + 1, stride)
    return any(not any(0 <= at < width for at in range(start, start + reach, dilation)) for start in starts)


def _pad_beforehand(graph: fx.Graph, node: fx.Node) -> None:
    """The zeros around a convolution's input as a padding of its own, so that it reads what is there."""
    source, weight, bias, strides, padding, *rest = node.args
    padding = list(padding) * ((weight.meta["val"].dim() - 2) // len(padding))  # type: ignore
    sides = [side for size in reversed(padding) for side in (size, size)]
    node.args = (_padded(graph, node, source, sides), weight, bias, strides, [0] * len(padding), *rest)  # type: ignore


def _padded(graph: fx.Graph, node: fx.Node, source: fx.Node, sides: list[int]) -> fx.Node:
    """A tensor with zeros around it, for `node` to read."""
    with graph.inserting_before(node):
        padded = graph.call_function(aten.pad.default, (source, sides))
    padded.meta["val"] = torch.nn.functional.pad(source.meta["val"], sides)
    return padded


def _out_of_place(operator: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """`aten.relu_.default` -> `aten.relu.default`. Later readers already name the result of the in-place call."""
    packet = getattr(aten, operator._schema.name.partition("::")[2].removesuffix("_"), None)
    twin = getattr(packet, operator._overloadname, None)
    if twin is None or twin is operator:
        raise CaptureError(f"the network changes a tensor in place ({operator}); write it without the in-place call.")
    return twin  # type: ignore[no-any-return]
