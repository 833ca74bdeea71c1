"""Write a torch.export archive in operators that every torch has, run it and look inside.

Integers are rounded and clamped in plain arithmetic. torch's `quantized_decomposed` operators would say the same in
fewer nodes, and exist only after an import of its deprecated quantization package: `torch.export.load` alone refuses
files with them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from dffg.errors import ExportError, InputError, first_line
from dffg.export.runtime import Kernels, Opened, Runtime, Watch
from dffg.graph.captured import program_input_shapes
from dffg.graph.ends import examples, join, split, split_ends
from dffg.graph.nodes import WEIGHTED, Tap, aten, calls, standalone
from dffg.models.archive import refuse_code
from dffg.quant.operators import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE, global_average_pool
from dffg.quant.quantized import Quantized
from dffg.spec import METADATA_KEY, Array, ImageSpec

_INTEGERS = (torch.uint8, torch.int8)


def write(quantized: Quantized, spec: ImageSpec, path: Path) -> None:
    """Write a quantized network: integers of weights and biases, and the arithmetic of the simulation."""
    write_float(quantized.module, spec, path)


def write_float(module: fx.GraphModule, spec: ImageSpec, path: Path) -> None:
    """Write a network."""
    given, batch = examples(spec, 2), Dim("batch")
    try:
        program = torch.export.export(
            split_ends(standalone(module)).eval(),
            given,
            dynamic_shapes=tuple({0: batch} for _ in given),
        ).run_decompositions(_DECOMPOSITIONS)
    except Exception as error:
        raise ExportError(f"this network cannot be written with torch.export: {first_line(error)}") from error
    torch.export.save(program, path, extra_files={METADATA_KEY: spec.to_json()})


def open_file(path: Path, threads: int = 0) -> Opened:
    """Load a file, which runs on as many threads as torch has."""
    program = _load(path)
    module, shapes = program.module(), program_input_shapes(program)

    def run_batch(batch: Array) -> Array:
        with torch.no_grad():
            return _joined(module(*map(torch.from_numpy, split(batch, shapes))))

    return Opened(run=run_batch, outputs=len(program.graph_signature.user_outputs))


def watch(quantized: Quantized, path: Path) -> Watch:
    """A written file as a function that also gives the integers of every quantized tensor."""
    program = _load(path)
    module, shapes = program.module(), program_input_shapes(program)
    rounded = [node.name for node in module.graph.nodes if _is_rounded(node)]
    names = dict(zip(rounded, (tensor.name for tensor in quantized.tensors), strict=True))

    def run_batch(batch: Array) -> tuple[Array, dict[str, NDArray[Any]]]:
        seen: dict[str, NDArray[Any]] = {}

        def visit(name: str, value: Any) -> Any:
            if name in names:
                seen[names[name]] = value.numpy()
            return value

        with torch.no_grad():
            return _joined(Tap(module, visit).run(*map(torch.from_numpy, split(batch, shapes)))), seen

    return run_batch


def _joined(returned: Any) -> Array:
    return join([leaf.numpy() for leaf in tree_leaves(returned)])


def count_kernels(path: Path) -> Kernels:
    """Every convolution and matrix product: torch computes them in float, on values that are integers times a scale."""
    nodes = [node for node in _load(path).graph.nodes if node.op == "call_function"]
    heavy = [node for node in nodes if calls(node, *WEIGHTED)]
    other = Counter(str(node.target) for node in nodes if node not in heavy)
    return Kernels(integer=0, float=len(heavy), other=dict(sorted(other.items())))


def read_spec(path: Path) -> ImageSpec | None:
    """The input description that dffg wrote into a file; None in files of others."""
    stored = {METADATA_KEY: ""}
    _load(path, stored)
    return ImageSpec.from_json(stored[METADATA_KEY]) if stored[METADATA_KEY] else None


def _load(path: Path, extra_files: dict[str, Any] | None = None) -> ExportedProgram:
    refuse_code(path)
    try:
        return torch.export.load(path, extra_files=extra_files)
    except Exception as error:
        raise InputError(f"torch cannot load {path}: {first_line(error)}") from error


def _is_rounded(node: fx.Node) -> bool:
    is_cast = calls(node, aten._to_copy.default) and node.kwargs.get("dtype") in _INTEGERS
    return is_cast and calls(node.args[0], aten.clamp.default)


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return ((x / scale).round() + zero_point).clamp(quant_min, quant_max).to(zero_point.dtype)


def _dequantize(levels: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    shape = [] if axis is None else [-1 if dim == axis else 1 for dim in range(levels.dim())]
    return (levels.float() - zero_point.float().reshape(shape)) * scale.reshape(shape)


_DECOMPOSITIONS: Any = {QUANTIZE: _quantize, DEQUANTIZE: _dequantize, GLOBAL_AVERAGE_POOL: global_average_pool}

RUNTIME = Runtime(
    suffixes=(".pt2",),
    write=write,
    write_float=write_float,
    open=open_file,
    watch=watch,
    count_kernels=count_kernels,
    read_spec=read_spec,
    notes=(
        "torch computes the archive in float, on the values of the integers: it is exact, to look at and to go on "
        "from, and not faster",
    ),
)
