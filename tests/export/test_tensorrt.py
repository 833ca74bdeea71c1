"""Files for TensorRT against its published rules, one test a rule, and their values in ONNX Runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from benchmarks.digits import SPEC as DIGITS
from onnx import numpy_helper

from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.export.onnx import write_float
from dffg.export.tensorrt import RUNTIME, count_kernels
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.pipeline.steps import finetune, quantize
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized
from tests.export import FLOAT_OPERATIONS, MIDDLES, SPEC, Body, folder, mean_head, normalized
from tests.networks import randomize

NETWORKS = {
    **MIDDLES,
    **FLOAT_OPERATIONS,
    "two-branches": lambda: Body(lambda body, x: mean_head(body, body.left[:2](x) + body.right[:2](x))),
    "bottleneck": lambda: Body(lambda body, x: mean_head(body, body.depthwise(x + body.left[:2](x)))),
}
CONFIG = QuantizationConfig(target="tensorrt")
LAYERS = ("Conv", "Gemm", "MatMul")


@cache
def quantized(name: str) -> Quantized:
    model = randomize(NETWORKS[name](), seed=len(name))
    return simulate(capture(model, spec=SPEC, name=name), [normalized(16), normalized(16, seed=1)], CONFIG)


@cache
def written(name: str) -> Path:
    path = folder() / f"tensorrt-{name}.onnx"
    RUNTIME.write(quantized(name), SPEC, path)
    return path


class File:
    """The graph of a file, by the names of its values."""

    def __init__(self, name: str) -> None:
        model = onnx.load(written(name))
        self.opset = model.opset_import[0].version
        self.nodes = list(model.graph.node)
        self.stored = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
        self._made_by = {output: node for node in self.nodes for output in node.output}

    def of_type(self, *types: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in types]

    def maker(self, value: str) -> str:
        """Type of the operator that a value comes from."""
        return self._made_by[value].op_type if value in self._made_by else "input"

    def readers(self, node: onnx.NodeProto) -> list[str]:
        return [reader.op_type for reader in self.nodes if node.output[0] in reader.input]


every = pytest.mark.parametrize("name", list(NETWORKS))


@every
def test_integers_are_signed_and_symmetric(name):
    file = File(name)
    pairs = file.of_type("QuantizeLinear", "DequantizeLinear")
    assert pairs
    for node in pairs:
        zero_point = file.stored[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (file.stored[node.input[1]] > 0).all()


@every
def test_nothing_stands_between_a_q_and_its_dq(name):
    file = File(name)
    assert all(file.readers(node) == ["DequantizeLinear"] for node in file.of_type("QuantizeLinear"))


@every
def test_layers_read_int8_data_and_int8_weights_with_a_scale_per_channel(name):
    file = File(name)
    weights = [node for node in file.of_type("DequantizeLinear") if node.input[0] in file.stored]
    assert len(weights) == len(quantized(name).layers)
    for layer in file.of_type(*LAYERS):
        if name != "padded" or file.maker(layer.input[0]) != "Pad":
            assert file.maker(layer.input[0]) == "DequantizeLinear"
        weight = next(node for node in weights if node.output[0] == layer.input[1])
        levels, scale = file.stored[weight.input[0]], file.stored[weight.input[1]]
        assert levels.dtype == np.int8
        assert scale.shape == (len(levels),)
        assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [0]


@every
def test_activations_have_one_scale(name):
    file = File(name)
    assert all(file.stored[node.input[1]].shape == () for node in file.of_type("QuantizeLinear"))


@every
def test_biases_are_float(name):
    file = File(name)
    biases = [file.stored[layer.input[2]] for layer in file.of_type(*LAYERS) if len(layer.input) > 2]
    assert biases
    assert all(bias.dtype == np.float32 for bias in biases)
    assert all(value.dtype != np.int32 for value in file.stored.values())


@every
def test_activations_and_sums_join_the_layer_before_them(name):
    file = File(name)
    for layer in file.of_type("Conv"):
        joined = set(file.readers(layer)) & {"Relu", "Clip", "Add"}
        if joined:
            assert file.readers(layer) == list(joined)


@pytest.mark.parametrize("name", ["two-branches", "bottleneck"])
def test_of_a_sum_the_last_layer_joins_it_and_the_other_operand_is_quantized(name):
    file = File(name)
    (sum_,) = file.of_type("Add")
    kinds = [file.maker(operand) for operand in sum_.input]
    assert sorted(kinds) == ["Conv", "DequantizeLinear"]
    made = {output: index for index, node in enumerate(file.nodes) for output in node.output}
    dequantize = next(operand for operand in sum_.input if file.maker(operand) == "DequantizeLinear")
    conv = next(operand for operand in sum_.input if file.maker(operand) == "Conv")
    assert made[conv] > made[dequantize]


def test_both_operands_are_quantized_where_no_layer_writes_one():
    (sum_,) = File("residual").of_type("Add")
    assert [File("residual").maker(operand) for operand in sum_.input] == ["DequantizeLinear"] * 2


@every
def test_the_answer_is_float(name):
    file = File(name)
    assert file.nodes[-1].op_type in LAYERS
    assert file.nodes[-1].output[0] == "output"


@every
def test_the_opset_is_one_that_the_parser_reads(name):
    assert 9 <= File(name).opset <= 25


@every
def test_computes_what_was_decided(name):
    found = match_simulation(quantized(name), written(name), normalized(8, seed=9), RUNTIME)
    assert found.holds, found


def test_the_kernels_are_those_that_the_rules_promise(tmp_path):
    layers = len(quantized("two-branches").layers)
    kernels = count_kernels(written("two-branches"))
    assert (kernels.integer, kernels.float, kernels.other["Add"]) == (layers, 0, 1)
    write_float(quantized("two-branches").float_module, SPEC, tmp_path / "float.onnx")
    kernels = count_kernels(tmp_path / "float.onnx")
    assert (kernels.integer, kernels.float) == (0, layers)


def test_a_zero_point_makes_a_layer_float(tmp_path):
    model = onnx.load(written("plain"))
    dequantize = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.int8(1), "one"))
    dequantize.input[2] = "one"
    onnx.save(model, tmp_path / "model.onnx")
    kernels = count_kernels(tmp_path / "model.onnx")
    assert (kernels.integer, kernels.float) == (1, 1)


def test_the_scale_of_an_activation_covers_both_signs():
    """The input: the larger end of the legal pixels at 127."""
    low, high = SPEC.input_bounds()
    largest = max(abs(float(low.min())), abs(float(high.max())))
    assert float(quantized("plain").module.get_buffer("x_scale")) == pytest.approx(largest / 127, rel=1e-6)


@pytest.mark.parametrize("bits", ["W4A8", "W8A4", "W7A7"])
def test_only_eight_bits_are_written(bits):
    with pytest.raises(InputError, match=r"tensorrt cannot run .* choose 8 or more"):
        QuantizationConfig(bits=bits, target="tensorrt")


def test_the_whole_road(digits, tmp_path):
    quick = SynthesisConfig(count=32, batch_size=16, steps=8, seed=1)
    result = quantize(digits.model, tmp_path / "out", spec=DIGITS, synthesis=quick, quantization=CONFIG)
    assert result.verified
    assert result.latency_ms is None
    assert (result.kernels.integer, result.kernels.float) == (5, 0)
    assert any("not run on TensorRT" in note for note in result.notes)
    tuned = finetune(digits.model, tmp_path / "out", tmp_path / "tuned", steps=2, spec=DIGITS)
    assert tuned.verified
    with pytest.raises(InputError, match="other integers than onnxruntime takes, which are unsigned"):
        finetune(digits.model, tmp_path / "out", tmp_path / "x", steps=2, spec=DIGITS, target="onnxruntime")
