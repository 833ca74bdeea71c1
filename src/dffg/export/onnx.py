"""Write a graph as standard ONNX, quantized operators as Q/DQ pairs, with a description of its input."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnxscript import opset21 as op
from torch import fx
from torch.export import Dim, ExportedProgram

from dffg.errors import ExportError, first_line
from dffg.export.names import make_unique_
from dffg.export.packing import pack_weights_
from dffg.graph.ends import examples, input_names, output_names, split_ends
from dffg.graph.nodes import BATCH_NORM, aten
from dffg.handover import INPUT_NAME
from dffg.quant.operators import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE
from dffg.quant.quantized import Quantized, weight_name
from dffg.spec import METADATA_KEY, ImageSpec

OPSET = 21
OUTPUT_NAME = "output"
ONNX_FILE = "model.onnx"
_QUANTIZED_SUFFIX = "_quantized"
_WHOLE_TYPES = ((0, 255), (-128, 127))
# What the exporter cannot translate whole, or only by Einsum (mT), which not every runtime has.
_DECOMPOSED = (
    BATCH_NORM,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.mT.default,
    aten.to.dtype,
)


def write_quantized(quantized: Quantized, spec: ImageSpec, path: Path) -> None:
    """Write a quantized network: integer weights, int32 biases, scales and zero points exactly as they are in torch.

    Weights are packed where their width allows.
    Every quantized tensor is named after the node it comes from, so that `quantized_value_name` finds it.
    """
    model = _translate(quantized.module, spec)
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    if len(quantizers) != len(quantized.tensors):
        raise ExportError(
            f"the exporter wrote {len(quantizers)} quantized tensors for {len(quantized.tensors)}; please report this."
        )
    levels = [_levels(node) for node in quantizers]
    for value, tensor in zip(levels, quantized.tensors, strict=True):
        value.name = quantized_value_name(tensor.name)
    _keep_transposed_convolutions(model)
    pack_weights_(model, {weight_name(layer.node): layer.weight_bits for layer in quantized.layers})
    _save(model, spec, path, kept_names=levels)


def _keep_transposed_convolutions(model: onnx_ir.Model) -> None:
    """Add their biases, or zeros, behind them.

    Between DQ and Q, ONNX Runtime (1.32, weight_bias_quantization.cc) rounds the float weight and bias of a transposed
    convolution to 8 bits by itself, and computes in float all the same. It leaves alone what no Q reads directly.
    """
    for node in [node for node in model.graph if node.op_type == "ConvTranspose"]:
        result, weight, *bias = node.outputs[0], *node.inputs[1:]
        if weight is None or weight.const_value is None or result.shape is None:
            continue
        shape = (1, int(result.shape[1]), *[1] * (len(result.shape) - 2))  # type: ignore[arg-type]
        given = bias[0].const_value if bias and bias[0] is not None else None
        added = np.zeros(shape, np.float32) if given is None else given.numpy().reshape(shape)
        stored = onnx_ir.Value(name=f"{result.name}_bias", const_value=onnx_ir.tensor(added))
        model.graph.register_initializer(stored)
        node.resize_inputs(2)
        addition = onnx_ir.node("Add", [result, stored])
        total = addition.outputs[0]
        total.name, total.shape, total.type = f"{result.name}_total", result.shape, result.type
        result.replace_all_uses_with(total)
        addition.replace_input_with(0, result)
        model.graph.insert_after(node, addition)


def _levels(quantizer: onnx_ir.Node) -> onnx_ir.Value:
    """The integers that later operators read: behind the clip, where there is one."""
    reader = next(iter(quantizer.outputs[0].uses())).node
    return reader.outputs[0] if reader.op_type == "Clip" else quantizer.outputs[0]


def write_float(module: fx.GraphModule, spec: ImageSpec, path: Path) -> None:
    """Write a float network, to compare size and speed with."""
    _save(_translate(module, spec), spec, path)


def quantized_value_name(tensor: str) -> str:
    """Name, in the file, of the integers of a quantized tensor."""
    return f"{tensor}{_QUANTIZED_SUFFIX}"


def _translate(module: fx.GraphModule, spec: ImageSpec) -> onnx_ir.Model:
    network, given = split_ends(module).eval(), examples(spec, 2)
    options: dict[str, Any] = {
        "dynamo": True,
        "opset_version": OPSET,
        "input_names": input_names(module, INPUT_NAME),
        "output_names": output_names(module, OUTPUT_NAME),
        "dynamic_shapes": tuple({0: Dim.DYNAMIC} for _ in given),
        "custom_translation_table": _TRANSLATIONS,
        "verbose": False,
    }
    try:
        with _quiet():
            try:
                whole = torch.export.export(network, given, dynamic_shapes=options["dynamic_shapes"])
                written = torch.onnx.export(_as_it_is(whole), **options)
            except Exception:
                written = torch.onnx.export(network, given, **options)
    except Exception as error:
        raise ExportError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    assert written is not None
    _name_batch_dimension(written.model)
    return written.model


def _as_it_is(program: ExportedProgram) -> ExportedProgram:
    """A program that the exporter does not decompose first, where every operator has a translation of its own.

    Decomposing takes more than half of the time. Of a graph in which nothing is done in place it changes nothing else.
    """
    if not any(node.target in _DECOMPOSED for node in program.graph.nodes):
        program.run_decompositions = lambda *_, **__: program
    return program


def _save(model: onnx_ir.Model, spec: ImageSpec, path: Path, *, kept_names: Sequence[onnx_ir.Value] = ()) -> None:
    make_unique_(model.graph, first=kept_names)
    model.metadata_props[METADATA_KEY] = spec.to_json()
    model.producer_name, model.producer_version = "dffg", None
    _strip(model)
    onnx_ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name} is not valid ONNX: {first_line(error)}; please report this.") from error


def _strip(model: onnx_ir.Model) -> None:
    """Leave out what the exporter notes about itself: stack traces with paths of this machine, and names it used."""
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()


def _name_batch_dimension(model: onnx_ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])


def _quantize_linear(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    """Ranges narrower than the type are clipped as integers, which ONNX Runtime still fuses into integer kernels."""
    levels = op.QuantizeLinear(x, scale, zero_point)
    if (quant_min, quant_max) in _WHOLE_TYPES:
        return levels
    return op.Clip(levels, _uint8(quant_min), _uint8(quant_max))


def _uint8(value: int) -> Any:
    return op.Constant(value=onnx.helper.make_tensor("", onnx.TensorProto.UINT8, [], [value]))


def _dequantize_linear(levels: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
    if axis is None:
        return op.DequantizeLinear(levels, scale, zero_point)
    return op.DequantizeLinear(levels, scale, zero_point, axis=axis)


def _global_average_pool(x: Any) -> Any:
    return op.GlobalAveragePool(x)


_TRANSLATIONS: dict[Any, Any] = {
    QUANTIZE: _quantize_linear,
    DEQUANTIZE: _dequantize_linear,
    GLOBAL_AVERAGE_POOL: _global_average_pool,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its stages on standard output and through warnings; a failure is an exception anyway."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
