"""Small ONNX graphs, and ONNX Runtime's answer to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 21


def node(operator: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, outputs or ["y"], name=attributes.pop("name", ""), **attributes)


def model(
    nodes: list[NodeProto],
    shape: tuple[int | str, ...],
    constants: dict[str, Array] | None = None,
    outputs: list[str] | None = None,
    opset: int = OPSET,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """A graph from the input `x` to `outputs`."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph: GraphProto = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or ["y"]],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def run(made: ModelProto, x: Array, name: str = "x") -> list[Array]:
    """The oracle."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x})


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
