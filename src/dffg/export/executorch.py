"""Write ExecuTorch programs for XNNPACK, run them and look inside.

The scales and zero points are those of the simulation: the graph is written in the operators that XNNPACK's
partitioner looks for, so that no quantizer of torchao is needed. Activations are int8 in place of uint8, every integer
128 lower, and biases are int32 again inside. A program takes one image, as phones do. Checked with ExecuTorch 1.5.1,
whose package brings a runtime for desktops.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dffg.errors import ExportError, InputError, first_line
from dffg.export.runtime import Kernels, Opened, Runtime, Watch
from dffg.graph.captured import default_spec
from dffg.graph.ends import INPUT, answers, examples, join, split, split_ends
from dffg.graph.nodes import add_tensor, aten, calls, is_stored, nodes_by_name, standalone, stored_tensor, with_output
from dffg.quant.operators import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE
from dffg.quant.placement import is_fused_padding
from dffg.quant.quantized import Quantized
from dffg.spec import Array, ImageSpec

_SHIFT = 128
_HEAVY = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected")
_INTEGER_TYPES = ("xnn_datatype_qint8", "xnn_datatype_qcint8")
_HEAVY_OUTSIDE = ("aten::convolution", "aten::linear", "aten::addmm", "aten::mm", "aten::bmm")
# In the header of XNNPACK's part of a program: where its graph begins, and its size.
_GRAPH_OFFSET, _GRAPH_SIZE = slice(10, 14), slice(14, 18)


def write(quantized: Quantized, spec: ImageSpec, path: Path) -> None:
    """Write a quantized network."""
    write_float(quantized.module, spec, path)


def write_float(module: fx.GraphModule, spec: ImageSpec, path: Path) -> None:
    """Write a network, of which XNNPACK gets what it can compute; torch's portable kernels compute the rest."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        program = torch.export.export(split_ends(_in_torch_operators(module)).eval(), examples(spec, 1))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:
        raise ExportError(f"this network cannot be written for ExecuTorch: {first_line(error)}") from error
    path.write_bytes(lowered.buffer)


def open_file(path: Path, threads: int = 0) -> Opened:
    """Load a file, which runs image by image; XNNPACK chooses the threads."""
    execute, count = _load(path)
    return Opened(run=lambda batch: np.concatenate([join(execute(image)) for image in _images(batch)]), outputs=count)


def watch(quantized: Quantized, path: Path) -> Watch:
    """A written file as a function that also gives the integers of every quantized tensor.

    XNNPACK shows nothing inside: the program is written once more with all integers as its results.
    """
    module, nodes = quantized.module, nodes_by_name(quantized.module)
    levels = [nodes[tensor.levels] for tensor in quantized.tensors]
    shown = with_output(module, [module.graph.output_node().args[0], *levels])  # type: ignore[list-item]
    spec = _spec_of(module)
    with tempfile.TemporaryDirectory() as folder:
        write_float(shown, spec, Path(folder) / "watched.pte")
        execute, _ = _load(Path(folder) / "watched.pte")
    names, count = [tensor.name for tensor in quantized.tensors], len(answers(module))

    def run_batch(batch: Array) -> tuple[Array, dict[str, NDArray[Any]]]:
        results = [np.concatenate(parts) for parts in zip(*map(execute, _images(batch)))]
        output, integers = join(results[:count]), results[count:]
        unsigned = [(values.astype(np.int16) + _SHIFT).astype(np.uint8) for values in integers]
        return output, dict(zip(names, unsigned, strict=True))

    return run_batch


def _spec_of(module: fx.GraphModule) -> ImageSpec:
    inputs = [node for node in module.graph.nodes if calls(node, INPUT)]
    inputs = inputs or [node for node in module.graph.nodes if node.op == "placeholder"]
    return default_spec([tuple(map(int, node.meta["val"].shape[1:])) for node in inputs])


def count_kernels(path: Path) -> Kernels:
    """What XNNPACK executes, by the types in its part of the program, and what is left to portable kernels."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    (plan,) = program.execution_plan
    outside = [operator.name for operator in plan.operators]
    layers, other = [operator in _HEAVY_OUTSIDE for operator in outside].count(True), Counter(outside)
    heavy = [False] * layers
    for delegate in plan.delegates:
        for kind, is_integer in _nodes(_graph(program.backend_delegate_data[delegate.processed.index].data)):
            if kind in _HEAVY:
                heavy.append(is_integer)
            else:
                other[kind] += 1
    return Kernels(integer=sum(heavy), float=len(heavy) - sum(heavy), other=dict(sorted(other.items())))


def read_spec(path: Path) -> ImageSpec | None:
    """A program has no room for what its input is."""
    return None


def _images(batch: Array) -> Iterator[Tensor]:
    # The runtime reads memory in order, whatever the strides say.
    return iter(torch.from_numpy(np.ascontiguousarray(batch)).split(1))


def _load(path: Path) -> tuple[Callable[[Tensor], list[Array]], int]:
    """A program as a function of one image, which gives all its results, and how many those are."""
    from executorch.runtime import Runtime as Executor

    try:
        content = path.read_bytes()
        method = Executor.get().load_program(content).load_method("forward")
    except (OSError, RuntimeError) as error:
        raise InputError(f"ExecuTorch cannot load {path}: {first_line(error)}") from error

    def execute(image: Tensor) -> list[Array]:
        # The next call writes its results to the same place. The program reads `content` all the while.
        shapes = [method.metadata.input_tensor_meta(index).sizes()[1:] for index in range(method.metadata.num_inputs())]
        parts = [torch.from_numpy(part) for part in split(image.numpy(), shapes)]
        return [result.numpy().copy() for result in method.execute(parts) if content]

    return execute, method.metadata.num_outputs()


def _in_torch_operators(module: fx.GraphModule) -> fx.GraphModule:
    """Replace our operators by those that ExecuTorch knows; what comes in is left as it is."""
    module = standalone(module)
    for node in list(module.graph.nodes):
        if is_fused_padding(node) and calls(node.args[0], DEQUANTIZE):
            _quantize_again(module, node)
    for node in list(module.graph.nodes):
        if calls(node, DEQUANTIZE):
            _read_once(module, node)
    for node in list(module.graph.nodes):
        if not calls(node, QUANTIZE, DEQUANTIZE, GLOBAL_AVERAGE_POOL):
            continue
        with module.graph.inserting_before(node):
            written = _written(module, node)
        node.replace_all_uses_with(written)
        module.graph.erase_node(node)
        written.name = node.name
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _quantize_again(module: fx.GraphModule, padding: fx.Node) -> None:
    """XNNPACK pads integers to integers; zero is one of them, so that nothing is rounded."""
    read = padding.args[0]
    made = read.args[0]  # type: ignore[union-attr]
    with module.graph.inserting_after(padding):
        levels = module.graph.call_function(QUANTIZE, (padding, *made.args[1:]))  # type: ignore[union-attr]
    with module.graph.inserting_after(levels):
        value = module.graph.call_function(DEQUANTIZE, (levels, *read.args[1:]))  # type: ignore[union-attr]
    padding.replace_all_uses_with(value, delete_user_cb=lambda user: user is not levels)


def _read_once(module: fx.GraphModule, dequantize: fx.Node) -> None:
    """One for each reader: the partitioner takes a DQ with its reader, and of a shared one it makes cycles."""
    for user in list(dequantize.users)[1:]:
        with module.graph.inserting_before(user):
            user.replace_input_with(dequantize, module.graph.node_copy(dequantize))


def _written(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    import torch.ao.quantization.fx._decomposed

    known = torch.ops.quantized_decomposed
    if calls(node, GLOBAL_AVERAGE_POOL):
        spatial = list(range(2, node.meta["val"].dim()))
        return module.graph.call_function(aten.mean.dim, (node.args[0], spatial, True))
    scale, zero_point = (stored_tensor(module, stored) for stored in node.args[1:3])  # type: ignore[arg-type]
    if is_stored(node.args[0]):
        return _stored_values(module, node, scale)
    affine = (float(scale), int(zero_point) - _SHIFT)
    if calls(node, QUANTIZE):
        arguments = (node.args[0], *affine, -128, 127, torch.int8)
        return module.graph.call_function(known.quantize_per_tensor.default, arguments)
    return module.graph.call_function(
        known.dequantize_per_tensor.default, (node.args[0], *affine, -128, 127, torch.int8)
    )


def _stored_values(module: fx.GraphModule, node: fx.Node, scale: Tensor) -> fx.Node:
    """An integer weight as it is; a bias in float, which XNNPACK makes int32 at the same scale."""
    levels = stored_tensor(module, node.args[0])  # type: ignore[arg-type]
    if levels.dtype == torch.int32:
        return add_tensor(module, f"{node.name}_float", (levels.double() * scale.double()).float())
    zeros = add_tensor(module, f"{node.name}_zeros", torch.zeros(len(scale), dtype=torch.int64))
    per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return module.graph.call_function(per_channel, (node.args[0], node.args[1], zeros, 0, -127, 127, torch.int8))


def _graph(payload: bytes) -> dict[str, Any]:
    """XNNPACK's part of a program as plain data."""
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    start, size = (int.from_bytes(payload[part], "little") for part in (_GRAPH_OFFSET, _GRAPH_SIZE))
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(payload[start : start + size])
        _flatc_decompile(folder, str(schema), str(binary))
        graph: dict[str, Any] = json.loads(binary.with_suffix(".json").read_text().replace("inf", str(math.pi)))
    return graph


def _nodes(graph: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Kind of every node, and whether its result is of integers."""
    types: dict[int, str] = {}
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        value = value.get("tensor_value", value)
        types[value["id_out"]] = value["datatype"]
    for entry in graph["xnodes"]:
        yield entry["xnode_union_type"], types[entry["xnode_union"]["output_id"]] in _INTEGER_TYPES


RUNTIME = Runtime(
    suffixes=(".pte",),
    write=write,
    write_float=write_float,
    open=open_file,
    watch=watch,
    count_kernels=count_kernels,
    read_spec=read_spec,
    requires=("executorch",),
    notes=("XNNPACK rounds the answer to 8 bits too, in the range that the calibration images have",),
)
