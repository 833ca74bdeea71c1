"""Load a network from an ONNX file: `load_onnx(path)`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
import torch
from onnx import TensorProto

from dffg.errors import CaptureError, DffgError, InputError, StatisticsError, first_line
from dffg.images import ImageSpec
from dffg.onnx_file import load, spec_of
from dffg.onnx_import.module import OnnxModule
from dffg.onnx_import.operators import OLDEST_VERSION

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
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

    The input's shape is the file's; mean, standard deviation and bounds are known where dffg has written them.

    Raises InputError where the file is damaged or already quantized, StatisticsError where it has no BatchNorm, and
    CaptureError, with the node, where an operator is not known.
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
    kinds = Counter(node.op_type for node in graph.node)
    _refuse_unusable(kinds)
    sizes = _input_sizes(graph)
    batch = sizes[0]
    module = OnnxModule(graph, version, batch).eval()
    spec = spec_of(model) or _spec(sizes[1:])
    if batch is not None:
        _require_free_batch(module, spec, batch)
    return LoadedOnnx(module=module, spec=spec, notes=_notes(kinds))


def _version(model: onnx.ModelProto) -> int:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < OLDEST_VERSION:
        raise InputError(f"it has opset {version}; export it with {OLDEST_VERSION} or later.")
    return version


def _refuse_unusable(kinds: Counter[str]) -> None:
    if any(kind.startswith(_QUANTIZED) for kind in kinds):
        raise InputError("it is quantized already; give the float network.")
    if not kinds["BatchNormalization"]:
        raise StatisticsError(f"it has no BatchNormalization. {KEEP_BATCH_NORM}")


def _notes(kinds: Counter[str]) -> tuple[str, ...]:
    layers, norms = sum(kinds[kind] for kind in _LAYERS), kinds["BatchNormalization"]
    return (f"the ONNX file has {norms} BatchNorm layers beside {layers} convolutions and matrix products",)


def _input_sizes(graph: onnx.GraphProto) -> list[int | None]:
    """Every axis of the input, None where the file leaves it open."""
    stored = {entry.name for entry in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise CaptureError(f"the network has {len(inputs)} inputs; only one is supported yet.")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        raise InputError(f"its input is {name}; export a network that takes float32.")
    sizes = [axis.dim_value or None for axis in kind.shape.dim]
    if len(sizes) < 2:
        raise InputError("its input has no known number of axes; export it with the shape of its input.")
    return sizes


def _spec(sizes: list[int | None]) -> ImageSpec | None:
    known = [size for size in sizes if size is not None]
    return ImageSpec(shape=tuple(known), source="default") if len(known) == len(sizes) else None


def _require_free_batch(module: OnnxModule, spec: ImageSpec | None, batch: int) -> None:
    """Two examples at once must give what they give one by one: a fixed batch may be written anywhere in a graph."""
    refusal = f"its batch is fixed at {batch}; export it with a dynamic batch (dynamic_shapes=({{0: Dim.DYNAMIC}},))."
    if spec is None:
        raise CaptureError(refusal)
    sample = torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            together, alone = _outputs(module, sample), [_outputs(module, example[None]) for example in sample]
            parts = [torch.cat(pair) for pair in zip(*alone)]
            same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(together, parts, strict=True))
    except RuntimeError as error:
        raise CaptureError(f"{refusal} ({first_line(error)})") from error
    if not same:
        raise CaptureError(refusal)


def _outputs(module: OnnxModule, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
    found = module(sample)
    return found if isinstance(found, tuple) else (found,)
