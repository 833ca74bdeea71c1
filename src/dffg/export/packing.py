"""Store the integers of weights in as few bits as the file format has, without changing what is computed."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir

from dffg.quant.widths import stored_bits

INT2_OPSET, INT2_IR_VERSION = 25, 13
_PACKED = {2: (onnx_ir.DataType.INT2, ml_dtypes.int2), 4: (onnx_ir.DataType.INT4, ml_dtypes.int4)}
MOST_PACKED_BITS = max(_PACKED)


def pack_weights_(model: onnx_ir.Model, bits: Mapping[str, int]) -> None:
    """Replace int8 initializers by INT4, or INT2, and a Cast back to int8, in place. bits: width by initializer.

    With the Cast in between, ONNX Runtime computes it once when it loads the file and then finds its int8 kernels;
    without it, it unpacks to float and convolves in float, eight times slower.
    """
    for name, width in bits.items():
        packed = _PACKED.get(stored_bits(width))
        initializer = model.graph.initializers.get(name)
        # The exporter merges equal tensors: one that is missing is stored under another name.
        if packed is not None and initializer is not None:
            _pack(model, initializer, *packed)


def _pack(model: onnx_ir.Model, value: onnx_ir.Value, dtype: onnx_ir.DataType, numpy_type: type) -> None:
    assert value.const_value is not None
    integers = np.ascontiguousarray(value.const_value.numpy())
    cast = onnx_ir.node("Cast", [value], {"to": int(onnx_ir.DataType.INT8)})
    unpacked = cast.outputs[0]
    unpacked.name, unpacked.type, unpacked.shape = f"{value.name}_int8", value.type, value.shape
    onnx_ir.convenience.replace_all_uses_with(value, unpacked)
    cast.replace_input_with(0, value)
    model.graph.insert_before(next(iter(model.graph)), cast)
    value.const_value = onnx_ir.Tensor(integers.astype(numpy_type), dtype=dtype, name=value.name)
    value.type = onnx_ir.TensorType(dtype)
    if dtype is onnx_ir.DataType.INT2:
        model.graph.opset_imports[""] = INT2_OPSET
        model.ir_version = INT2_IR_VERSION
