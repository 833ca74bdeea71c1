"""Load a network from an ONNX file: `load_onnx(path)`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
import torch
from onnx import TensorProto
from torch import Tensor

from dffg.errors import CaptureError, DffgError, InputError, StatisticsError, first_line
from dffg.graph.captured import default_spec
from dffg.graph.nodes import refuse_endless
from dffg.onnx_file import load, spec_of
from dffg.onnx_import.module import OnnxModule
from dffg.onnx_import.operators import OLDEST_VERSION
from dffg.spec import ImageSpec

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")
# Where there is no BatchNorm, what can be compared in its place.
_NORMALIZATIONS = {"LayerNormalization", "GroupNormalization", "InstanceNormalization"}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOST_NAMES = 8
KEEP_BATCH_NORM = (
    "Exporters fold BatchNorm into the convolutions unless told otherwise, and with it goes what the network "
    "remembers. Export again, in eval mode, with torch.onnx.export(..., dynamo=True, optimize=False) or "
    "torch.onnx.export(..., dynamo=False, training=torch.onnx.TrainingMode.PRESERVE), or give the PyTorch network."
)


@dataclass(frozen=True, kw_only=True)
class LoadedOnnx:
    """A network, what is known of its input, and what a report must say about the file."""

    module: OnnxModule
    spec: ImageSpec | None
    notes: tuple[str, ...]


def load_onnx(path: Path) -> LoadedOnnx:
    """Build a network from the graph of a file. Nothing of the file is executed, and only what lies beside it is read.

    The inputs' shapes are the file's; mean, standard deviation and bounds are known where dffg has written them.

    Raises InputError where the file is damaged or already quantized, StatisticsError where it has neither BatchNorm nor
    patches to compare, and CaptureError, with the node, where an operator is not known.
    """
    model = load(path)
    try:
        return _build(model)
    except DffgError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        raise InputError(f"{path} is not an ONNX file that can be used: {first_line(error)}") from error


def _build(model: onnx.ModelProto) -> LoadedOnnx:
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph, version = model.graph, _version(model)
    _refuse_unusable(graph)
    refuse_endless(len(graph.node))
    inputs = [_sizes(value) for value in _inputs(graph)]
    batch = next((size for size, *_ in inputs if size is not None), None)
    module = OnnxModule(graph, version, batch).eval()
    spec = spec_of(model) or _spec([sizes for _, *sizes in inputs])
    if batch is not None:
        _require_free_batch(module, spec, batch)
    return LoadedOnnx(module=module, spec=spec, notes=tuple(_notes(module)))


def _version(model: onnx.ModelProto) -> int:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < OLDEST_VERSION:
        raise InputError(f"it has opset {version}; export it with {OLDEST_VERSION} or later.")
    return version


def _refuse_unusable(graph: onnx.GraphProto) -> None:
    kinds = {node.op_type for node in graph.node}
    if any(kind.startswith(_QUANTIZED) for kind in kinds):
        raise InputError("it is quantized already; give the float network.")
    if "BatchNormalization" not in kinds and not (kinds & _NORMALIZATIONS or _has_attention(graph)):
        raise StatisticsError(f"it has no BatchNormalization. {KEEP_BATCH_NORM}")


def _has_attention(graph: onnx.GraphProto) -> bool:
    """Whether a product reads a softmax; the last one of a classifier is read by nothing."""
    weights = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    return any(node.op_type == "MatMul" and node.input[0] in weights for node in graph.node)


def _notes(module: OnnxModule) -> Iterator[str]:
    """How much of the BatchNorm is left, and the layers with it or those without, whichever are fewer."""
    read = [step.inputs[0] for step in module.steps if step.operator == "BatchNormalization"]
    names: dict[bool, list[str]] = {True: [], False: []}
    for step in module.steps:
        if step.operator in _LAYERS:
            names[step.outputs[0] in read].append(module.name_of(step))
    if not read:
        return
    layers = f"{len(read)} BatchNorm layers beside {len(names[True] + names[False])} convolutions and matrix products"
    fewer = len(names[True]) < len(names[False])
    yield f"the ONNX file has {layers}; {'followed' if fewer else 'not followed'} by one: {_listed(names[fewer])}"


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return " and ".join([", ".join(names[:_MOST_NAMES]), *more]) or "none"


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {entry.name for entry in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Every axis of an input, None where the file leaves it open."""
    kind = value.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        raise InputError(f"its input {value.name} is {name}; export a network that takes float32.")
    sizes = [axis.dim_value or None for axis in kind.shape.dim]
    if len(sizes) < 2:
        raise InputError(f"its input {value.name} has no known number of axes; export it with the shape of its inputs.")
    return sizes


def _spec(shapes: list[list[int | None]]) -> ImageSpec | None:
    known = [tuple(size for size in sizes if size is not None) for sizes in shapes]
    return default_spec(known) if list(map(len, known)) == list(map(len, shapes)) else None


def _require_free_batch(module: OnnxModule, spec: ImageSpec | None, batch: int) -> None:
    """Two examples at once must give what they give one by one: a fixed batch may be written anywhere in a graph."""
    refusal = f"its batch is fixed at {batch}; export it with a dynamic batch (dynamic_shapes=({{0: Dim.DYNAMIC}},))."
    if spec is None:
        raise CaptureError(refusal)
    generator = torch.Generator().manual_seed(0)
    sample = [torch.rand(2, *part.shape, generator=generator) for part in spec.parts]
    try:
        with torch.no_grad():
            together, alone = _outputs(module, sample), [_outputs(module, example) for example in _one_by_one(sample)]
            parts = [torch.cat(pair) for pair in zip(*alone)]
            same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(together, parts, strict=True))
    except RuntimeError as error:
        raise CaptureError(f"{refusal} ({first_line(error)})") from error
    if not same:
        raise CaptureError(refusal)


def _one_by_one(sample: list[Tensor]) -> list[list[Tensor]]:
    return [[part[index : index + 1] for part in sample] for index in range(2)]


def _outputs(module: OnnxModule, sample: list[Tensor]) -> tuple[Tensor, ...]:
    found = module(*sample)
    return tuple(found.values()) if isinstance(found, dict) else (found,)
