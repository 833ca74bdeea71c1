from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dffg.errors import InputError
from dffg.export.onnx import quantized_value_name, write_float
from dffg.export.onnxruntime import IntermediateRunner, count_kernels, run, session
from tests.export import SPEC, exported, normalized


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    write_float(exported("plain").quantized.float_module, SPEC, path)
    return path


@pytest.fixture
def steps(tmp_path):
    """y = relu(x + 1) * 2, with the names of its values."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["positive"]),
        helper.make_node("Mul", ["positive", "two"], ["y"]),
    ]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("one", 1), ("two", 2))]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "steps", value[:1], value[1:], constants)
    path = tmp_path / "steps.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_float_layers_count_as_float(float_file):
    kernels = count_kernels(float_file)
    assert (kernels.integer, kernels.float) == (0, 2)
    assert "Conv" not in kernels.other


def test_integer_layers_count_as_integer():
    kernels = count_kernels(exported("residual").path)
    assert (kernels.integer, kernels.float) == (3, 0)
    assert kernels.other["QLinearAdd"] == 1


def test_a_layer_that_is_not_fused_counts_as_float(tmp_path):
    model = onnx.load(exported("plain").path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    quantizer = next(node for node in model.graph.node if conv.output[0] in node.input)
    # an operator between the layer and its quantization, without an integer kernel
    model.graph.node.insert(
        list(model.graph.node).index(quantizer), helper.make_node("Sin", [conv.output[0]], ["bent"])
    )
    quantizer.input[0] = "bent"
    onnx.save(model, tmp_path / "model.onnx")
    kernels = count_kernels(tmp_path / "model.onnx")
    assert (kernels.integer, kernels.float) == (1, 1)
    assert kernels.other["Sin"] == 1


def test_counting_leaves_no_file_beside_the_network(tmp_path, float_file):
    path = tmp_path / "model.onnx"
    path.write_bytes(float_file.read_bytes())
    count_kernels(path)
    assert list(tmp_path.iterdir()) == [path]


def test_run_answers_batch_by_batch(steps):
    batches = [np.array([[-3, 1]], np.float32), np.array([[0, 0], [1, 2], [-1, 4]], np.float32)]
    answers = list(run(steps, iter(batches)))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, np.maximum(batch + 1, 0) * 2)


def test_intermediates_come_under_their_names(steps):
    batch = np.array([[-3, 1], [0, 5]], np.float32)
    before = steps.read_bytes()
    output, values = IntermediateRunner(steps, ["positive", "sum"]).run(batch)
    np.testing.assert_array_equal(output, np.maximum(batch + 1, 0) * 2)
    assert list(values) == ["positive", "sum"]
    np.testing.assert_array_equal(values["sum"], batch + 1)
    np.testing.assert_array_equal(values["positive"], np.maximum(batch + 1, 0))
    assert steps.read_bytes() == before


def test_intermediates_of_a_quantized_network_are_its_integers():
    quantized, images = exported("plain").quantized, normalized(2)
    names = [quantized_value_name(tensor.name) for tensor in quantized.tensors]
    output, values = IntermediateRunner(exported("plain").path, names).run(images.numpy())
    assert list(values) == names
    assert all(value.dtype == np.uint8 for value in values.values())
    levels = torch.round(images * 255 / 5).shape
    assert values[names[0]].shape == tuple(levels)
    np.testing.assert_array_equal(output, next(run(exported("plain").path, [images.numpy()])))


@pytest.mark.parametrize("content", [b"rubbish", b""])
def test_file_that_the_runtime_cannot_load_is_explained(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for source in (path, content or b"\0"):
        with pytest.raises(InputError, match="ONNX Runtime cannot load the file"):
            session(source)
