"""Files for TensorRT, which is not here: ONNX that follows its rules, run in ONNX Runtime.

The rules, from NVIDIA's documentation of TensorRT 11 (docs.nvidia.com/deeplearning/tensorrt/latest): integers are
signed and symmetric, scales are per tensor for activations and per channel for weights
(inference-library/work-quantized-types.html); a network with Q/DQ pairs is built exactly as they say, and pre-quantized
weights need a DQ before their layer (inference-library/quantized-types-explicit-quantization.html); opsets 9 to 25 are
read (reference/onnx-opset-guide.html). A DQ of an int32 bias is refused by its parser (github.com/onnx/onnx-tensorrt
issue 850), so biases are float. Where Q/DQ pairs stand is decided in `dffg.quant.placement`.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import onnx

from dffg.export import onnxruntime
from dffg.export.onnx import write_float, write_quantized
from dffg.export.runtime import Kernels, Runtime
from dffg.onnx_file import load, read_spec

_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def count_kernels(path: Path) -> Kernels:
    """By the file alone: layers whose data and weight are both read from int8, which is what TensorRT asks for."""
    graph = load(path).graph
    integers = _dequantized_int8(graph)
    heavy = [node for node in graph.node if node.op_type in _HEAVY]
    integer = sum(all(name in integers for name in node.input[:2]) for node in heavy)
    other = Counter(node.op_type for node in graph.node if node.op_type not in _HEAVY)
    return Kernels(integer=integer, float=len(heavy) - integer, other=dict(sorted(other.items())))


def _dequantized_int8(graph: onnx.GraphProto) -> set[str]:
    """Values that come from a DQ with a zero point of int8, all 0."""
    zeros = {
        value.name
        for value in graph.initializer
        if value.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(value).any()
    }
    return {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[2] in zeros}


RUNTIME = Runtime(
    suffixes=(".onnx",),
    write=write_quantized,
    write_float=write_float,
    # Fused, ONNX Runtime would round the float biases to its int32.
    open=partial(onnxruntime.open_file, as_written=True),
    watch=partial(onnxruntime.watch, as_written=True),
    count_kernels=count_kernels,
    read_spec=read_spec,
    is_timed=False,
    notes=(
        "not run on TensorRT here: integers and accuracy were checked in ONNX Runtime, kernels are those that "
        "TensorRT's rules promise",
    ),
)
