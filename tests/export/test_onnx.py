"""What is written is what was decided, seen by reading the file with nothing of dffg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import fx, nn
from torch.nn import functional as F

import dffg.export.onnx
from dffg.config import QuantizationConfig
from dffg.errors import ExportError, InputError
from dffg.export.onnx import quantized_value_name, write_float, write_quantized
from dffg.export.onnxruntime import count_kernels
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.onnx_file import load, read_spec
from dffg.quant.decide import simulate
from dffg.quant.operators import QUANTIZE
from dffg.quant.quantized import Quantized
from dffg.spec import ImageSpec
from tests.export import FLOAT_OPERATIONS, MIDDLES, SHAPE, SPEC, Body, exported, mean_head, normalized
from tests.networks import inputs, randomize, small_conv

NETWORKS = [*MIDDLES, *FLOAT_OPERATIONS]
HEAVY = {"Conv", "Gemm", "MatMul"}


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images.numpy()})[
        0
    ]


def stored(module: fx.GraphModule, node: object) -> np.ndarray:
    return module.get_buffer(node.target).numpy()  # type: ignore[attr-defined]


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_file_is_valid_standard_onnx(name):
    model = onnx.load(exported(name).path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]
    assert model.opset_import[0].version >= 21
    assert not model.functions
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch 2.13 decomposes flatten into its sizes")
@pytest.mark.parametrize("name", NETWORKS)
def test_operators_are_those_of_the_decomposed_network(name, monkeypatch, tmp_path):
    """A network is written without being decomposed first, which takes time and should change nothing."""
    monkeypatch.setattr(dffg.export.onnx, "_as_it_is", lambda program: program)
    write_quantized(exported(name).quantized, SPEC, tmp_path / "decomposed.onnx")
    files = (exported(name).path, tmp_path / "decomposed.onnx")
    asked, decomposed = (sorted(node.op_type for node in onnx.load(file).graph.node) for file in files)
    assert asked == decomposed


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT


def test_a_transposed_matrix_is_no_einsum(tmp_path):
    captured = capture(nn.Sequential(*small_conv()[:3], Transposed()), input_shape=SHAPE)
    write_float(fold_batch_norms(captured), captured.spec, tmp_path / "model.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators == ["Conv", "Relu", "Transpose"]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_layers_are_stored_as_integers(name):
    model = onnx.load(exported(name).path)
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    made_by = producers(model)
    layers = [node for node in model.graph.node if node.op_type in HEAVY]
    assert len(layers) == len(exported(name).quantized.layers)
    for node in layers:
        weight, bias = (made_by[operand] for operand in node.input[1:3])
        assert weight.op_type == bias.op_type == "DequantizeLinear"
        assert types[weight.input[0]] == types[weight.input[2]] == TensorProto.INT8
        assert types[bias.input[0]] == types[bias.input[2]] == TensorProto.INT32
        assert made_by[node.input[0]].op_type == "DequantizeLinear"


def quantize_nodes(quantized: Quantized) -> dict[str, fx.Node]:
    return {node.name: node for node in quantized.module.graph.nodes if node.target is QUANTIZE}


@pytest.mark.parametrize("name", NETWORKS)
def test_scales_and_zero_points_of_activations_are_those_of_torch(name):
    quantized = exported(name).quantized
    model = onnx.load(exported(name).path)
    values, made_by = initializers(model), producers(model)
    in_torch = quantize_nodes(quantized)
    assert len(quantized.tensors) == len(in_torch) == sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    for tensor in quantized.tensors:
        node = made_by[quantized_value_name(tensor.name)]
        scale, zero_point = in_torch[tensor.levels].args[1:3]
        assert node.op_type == "QuantizeLinear"
        assert same_bits(values[node.input[1]], stored(quantized.module, scale))
        assert same_bits(values[node.input[2]], stored(quantized.module, zero_point))
        for reader in model.graph.node:
            if node.output[0] in reader.input:
                assert reader.op_type == "DequantizeLinear"
                assert list(reader.input[1:]) == list(node.input[1:])


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_and_scales_of_parameters_are_those_of_torch(name):
    quantized = exported(name).quantized
    model = onnx.load(exported(name).path)
    values, made_by = initializers(model), producers(model)
    by_name = {node.name: node for node in quantized.module.graph.nodes}
    in_file = [node for node in model.graph.node if node.op_type in HEAVY]
    for layer, node in zip(quantized.layers, in_file, strict=True):
        for position in (1, 2):
            written, decided = made_by[node.input[position]], by_name[layer.node].args[position]
            for operand, argument in zip(written.input, decided.args[:3], strict=True):
                assert same_bits(values[operand], stored(quantized.module, argument))
            assert [entry.i for entry in written.attribute if entry.name == "axis"] == [0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_answer_of_the_simulation(name, batch):
    quantized = exported(name).quantized
    images = normalized(batch, seed=9)
    with torch.no_grad():
        expected = quantized.module(images).numpy()
    answer = run(exported(name).path, images)
    assert answer.shape == expected.shape == (batch, 5)
    # Rounding ties may fall differently, each worth one step of some layer.
    assert np.abs(answer - expected).max() <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_computes_what_was_simulated(name):
    match = match_simulation(exported(name).quantized, exported(name).path, normalized(8, seed=9))
    assert match.holds, match


@pytest.mark.parametrize("name", NETWORKS)
def test_answer_is_near_that_of_the_float_network(name):
    images = normalized(8, seed=9)
    with torch.no_grad():
        expected = exported(name).model(images).numpy()
    noise = np.square(run(exported(name).path, images) - expected).sum()
    assert 10 * np.log10(np.square(expected).sum() / noise) > 25


@pytest.mark.parametrize(
    ("options", "in_float"),
    [
        ({"kernel_size": 3, "ceil_mode": True}, []),
        ({"kernel_size": 3, "ceil_mode": True, "padding": 1, "count_include_pad": False}, []),
        ({"kernel_size": 3, "ceil_mode": True, "padding": 1}, ["pad_default (pad)"]),
        ({"kernel_size": 2, "divisor_override": 3}, ["mul_tensor (mul)"]),
        ({"kernel_size": (3, 2), "padding": 1, "divisor_override": 5}, ["mul_tensor (mul)"]),
    ],
    ids=str,
)
def test_windows_are_divided_as_in_torch(options, in_float, tmp_path):
    """Those that reach beyond the end or into padding, and those that are divided by something else."""
    body = randomize(Body(lambda body, x: mean_head(body, body.left(F.avg_pool2d(x, stride=2, **options)))))
    images = inputs(SHAPE, 8)
    captured = capture(body, spec=SPEC)
    quantized = simulate(captured, [images])
    assert [*quantized.float_operations] == in_float
    write_quantized(quantized, SPEC, tmp_path / "model.onnx")
    assert match_simulation(quantized, tmp_path / "model.onnx", images).holds
    write_float(fold_batch_norms(captured), SPEC, tmp_path / "float.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "float.onnx", images), body(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bounds", [(0.0, 1), (-0.5, 2), (None, 1), (0, None)], ids=str)
def test_a_clip_may_have_whole_and_broken_bounds(bounds, tmp_path):
    body = randomize(Body(lambda body, x: mean_head(body, torch.clamp(body.left(x), *bounds))))
    quantized = simulate(capture(body, spec=SPEC), [inputs(SHAPE, 8)])
    write_quantized(quantized, SPEC, tmp_path / "model.onnx")
    assert match_simulation(quantized, tmp_path / "model.onnx", inputs(SHAPE, 8)).holds


@pytest.mark.parametrize("name", MIDDLES)
def test_every_layer_runs_in_integers(name):
    kernels = count_kernels(exported(name).path)
    assert kernels.float == 0, kernels
    assert kernels.integer == len(exported(name).quantized.layers)
    assert not exported(name).quantized.float_operations


@pytest.mark.parametrize(("name", "operation"), [("hardswish", "hardswish"), ("batch-norm", "batch_norm")])
def test_layers_around_float_operations_run_in_integers(name, operation):
    kernels = count_kernels(exported(name).path)
    assert kernels.float == 0, kernels
    assert kernels.integer == 3
    assert any(operation in described for described in exported(name).quantized.float_operations)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_tells_nothing_of_the_machine(name):
    content = exported(name).path.read_bytes()
    secrets = [str(Path.home()), str(Path.cwd()), str(exported(name).path.parent), str(Path(torch.__file__).parent)]
    secrets = [secret for secret in secrets if secret != "/"]
    for text in (*secrets, "/usr/", "site-packages", ".py", "Traceback", "stack_trace", "File "):
        assert text.encode() not in content, text
    assert not any(node.doc_string or node.metadata_props for node in onnx.load(exported(name).path).graph.node)


def test_spec_makes_the_round_trip():
    assert read_spec(exported("plain").path) == SPEC
    assert onnx.load(exported("plain").path).producer_name == "dffg"


def test_spec_is_stored_as_json_that_others_can_read():
    properties = {entry.key: entry.value for entry in onnx.load(exported("plain").path).metadata_props}
    stored_spec = json.loads(properties["dffg.input"])
    assert stored_spec["shape"] == [3, 8, 8]
    assert stored_spec["mean"] == [0.4, 0.5, 0.6]
    assert stored_spec["std"] == [0.2, 0.3, 0.4]
    assert stored_spec["bounds"] == [0.0, 1.0]


def test_files_of_others_have_no_spec(tmp_path):
    model = onnx.load(exported("plain").path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    assert read_spec(tmp_path / "other.onnx") is None


def test_float_file_computes_the_network(tmp_path):
    path, images = tmp_path / "float.onnx", normalized(5, seed=9)
    write_float(exported("residual").quantized.float_module, SPEC, path)
    with torch.no_grad():
        expected = exported("residual").model(images).numpy()
    np.testing.assert_allclose(run(path, images), expected, atol=1e-4)
    assert {node.op_type for node in onnx.load(path).graph.node}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    assert read_spec(path) == SPEC


@pytest.mark.parametrize("content", [b"rubbish", b""])
def test_file_that_is_no_onnx_is_named(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for read in (load, read_spec):
        with pytest.raises(InputError, match=r"model.onnx is not a readable ONNX file"):
            read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing.onnx is not a readable ONNX file"):
        load(tmp_path / "nothing.onnx")


class Unusual(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_network_that_onnx_cannot_express_is_explained(tmp_path):
    module = torch.export.export(Unusual(), (torch.zeros(2, 3),)).module()
    with pytest.raises(ExportError, match="this network cannot be written as ONNX: "):
        write_float(module, ImageSpec(shape=(3,)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_explanation_of_the_exporter_is_cut_to_one_line(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no such operator\nand a long report")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"cannot be written as ONNX: no such operator$"):
        write_float(exported("plain").quantized.float_module, SPEC, tmp_path / "model.onnx")


def test_what_branches_compute_alike_is_quantized_once(tmp_path):
    def middle(body: Body, x: torch.Tensor) -> torch.Tensor:
        left, right = body.left(F.max_pool2d(x, 2)), body.right(F.max_pool2d(x, 2))
        return body.head((F.relu(body.norm(left + right)) + F.relu(body.norm(left + right))).mean((2, 3)))

    quantized = simulate(capture(randomize(Body(middle)), spec=SPEC), [normalized(16)], QuantizationConfig())
    write_quantized(quantized, SPEC, tmp_path / "model.onnx")
    found = match_simulation(quantized, tmp_path / "model.onnx", normalized(8, seed=9))
    assert found.holds, found


def test_a_file_that_is_not_valid_is_said_in_one_line(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise onnx.checker.ValidationError("Graph must be\nmuch else")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(ExportError, match=r"float.onnx is not valid ONNX: Graph must be; please report this\.$"):
        write_float(exported("plain").quantized.float_module, SPEC, tmp_path / "float.onnx")


def test_export_is_silent(tmp_path, capsys):
    write_quantized(exported("plain").quantized, SPEC, tmp_path / "model.onnx")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_the_same_network_gives_the_same_bytes(tmp_path):
    write_quantized(exported("plain").quantized, SPEC, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported("plain").path.read_bytes()


@pytest.mark.parametrize("bits", ["W4A4", "W8A6", "W3A8"])
def test_narrow_ranges_are_clipped_as_integers_and_still_run_in_integers(tmp_path, bits):
    """The file computes what was simulated, also where inputs exceed what calibration saw."""
    from dffg.config import QuantizationConfig
    from dffg.graph.captured import capture
    from dffg.quant.decide import simulate

    network = capture(randomize(MIDDLES["residual"]()), spec=SPEC)
    quantized = simulate(network, [0.3 * inputs(SHAPE, 8)], QuantizationConfig(bits=bits))
    path = tmp_path / "narrow.onnx"
    write_quantized(quantized, SPEC, path)
    assert count_kernels(path).float == 0
    assert len({node.op_type for node in onnx.load(path).graph.node} & {"Clip"}) == (bits != "W3A8")
    match = match_simulation(quantized, path, inputs(SHAPE, 8))
    assert match.equal_share >= 0.999
    assert match.max_abs_difference_in_steps <= 1
