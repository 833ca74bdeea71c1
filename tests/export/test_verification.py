"""The verification holds on good files, and only on good files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dffg.config import QuantizationConfig
from dffg.export import verification
from dffg.export.onnx import quantized_value_name, write_quantized
from dffg.export.onnxruntime import RUNTIME, watch
from dffg.export.runtime import Opened
from dffg.export.verification import SimulationMatch, _follow, layer_sqnr_db, match_simulation
from dffg.graph.captured import capture
from dffg.quant.decide import simulate
from tests.export import FLOAT_OPERATIONS, MIDDLES, SPEC, exported, normalized
from tests.networks import randomize

NAME = "residual"
TENSORS = [tensor.name for tensor in exported(NAME).quantized.tensors]
LAYERS = [layer.name for layer in exported(NAME).quantized.layers]


def match(path: Path) -> SimulationMatch:
    return match_simulation(exported(NAME).quantized, path, normalized(8, seed=9))


def changed(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of the file with something else in it, still valid."""
    model = onnx.load(exported(NAME).path)
    change(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def replace_operand(model: onnx.ModelProto, nodes: list[onnx.NodeProto], index: int, change: Callable) -> None:
    """Give these nodes a changed copy of a stored operand, which others may go on reading."""
    name = nodes[0].input[index]
    value = next(numpy_helper.to_array(entry) for entry in model.graph.initializer if entry.name == name)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(change(value.copy())), f"{name}_changed"))
    for node in nodes:
        node.input[index] = f"{name}_changed"


def quantizer_of(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """The pair of nodes that quantizes a tensor and reads it back."""
    levels = quantized_value_name(tensor)
    return [node for node in model.graph.node if levels in (*node.input, *node.output)]


def weight_of(model: onnx.ModelProto, layer: str) -> list[onnx.NodeProto]:
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    weight = heavy[LAYERS.index(layer)].input[1]
    return [node for node in model.graph.node if weight in node.output]


def bias_of(model: onnx.ModelProto, layer: str) -> list[onnx.NodeProto]:
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    bias = heavy[LAYERS.index(layer)].input[2]
    return [node for node in model.graph.node if bias in node.output]


def one_up(zero_point: np.ndarray) -> np.ndarray:
    return zero_point + np.uint8(1)


@pytest.mark.parametrize("name", ["depthwise", "residual", "two-layer-head"])
@pytest.mark.parametrize("correction", ["analytic", "empirical"])
def test_holds_with_every_part_of_quantization(name, correction, tmp_path):
    options = QuantizationConfig(
        bits="W4A8", equalize="weights", absorb_biases=True, weight_rounding="squant", bias_correction=correction
    )
    model = randomize(MIDDLES[name](), seed=len(name))
    quantized = simulate(capture(model, spec=SPEC), [normalized(16)], options)
    write_quantized(quantized, SPEC, tmp_path / "model.onnx")
    assert match_simulation(quantized, tmp_path / "model.onnx", normalized(8, seed=9)).holds


@pytest.mark.parametrize("name", [*MIDDLES, *FLOAT_OPERATIONS])
def test_holds_on_good_files(name):
    found = match_simulation(exported(name).quantized, exported(name).path, normalized(8, seed=9))
    assert found.holds, found
    assert found.equal_share >= 0.999
    assert found.max_abs_difference_in_steps <= 1
    assert found.count == 8
    assert found.worst_tensor in [tensor.name for tensor in exported(name).quantized.tensors]


def test_rewriting_the_file_changes_nothing(tmp_path):
    assert match(changed(tmp_path, lambda model: None)).holds


@pytest.mark.parametrize("factor", [1.02, 0.98])
@pytest.mark.parametrize("tensor", TENSORS)
def test_fails_when_the_scale_of_an_activation_is_changed(tmp_path, tensor, factor):
    path = changed(
        tmp_path,
        lambda model: replace_operand(model, quantizer_of(model, tensor), 1, lambda scale: scale * np.float32(factor)),
    )
    assert not match(path).holds


@pytest.mark.parametrize("tensor", TENSORS)
def test_fails_when_a_zero_point_is_moved(tmp_path, tensor):
    path = changed(tmp_path, lambda model: replace_operand(model, quantizer_of(model, tensor), 2, one_up))
    found = match(path)
    assert not found.holds
    assert found.equal_share < 0.999


@pytest.mark.parametrize("tensor", TENSORS)
def test_fails_when_a_tensor_is_read_back_with_another_scale(tmp_path, tensor):
    def change(model):
        readers = [node for node in quantizer_of(model, tensor) if node.op_type == "DequantizeLinear"]
        replace_operand(model, readers, 1, lambda scale: scale * np.float32(1.02))

    assert not match(changed(tmp_path, change)).holds


@pytest.mark.parametrize("layer", LAYERS)
def test_fails_when_the_scale_of_a_weight_is_changed(tmp_path, layer):
    path = changed(
        tmp_path,
        lambda model: replace_operand(model, weight_of(model, layer), 1, lambda scale: scale * np.float32(1.02)),
    )
    assert not match(path).holds


@pytest.mark.parametrize("layer", LAYERS)
def test_fails_when_an_integer_of_a_weight_is_changed(tmp_path, layer):
    def flip_largest(weight):
        largest = np.unravel_index(np.abs(weight.astype(int)).argmax(), weight.shape)
        weight[largest] = np.int8(np.clip(-int(weight[largest]), -127, 127))
        return weight

    path = changed(tmp_path, lambda model: replace_operand(model, weight_of(model, layer), 0, flip_largest))
    assert not match(path).holds


@pytest.mark.parametrize("layer", LAYERS)
def test_fails_when_a_bias_is_changed(tmp_path, layer):
    def raise_first(bias):
        bias[0] += max(100, np.abs(bias).max() // 2)
        return bias

    path = changed(tmp_path, lambda model: replace_operand(model, bias_of(model, layer), 0, raise_first))
    assert not match(path).holds


@pytest.mark.parametrize(
    ("share", "steps", "error", "noise", "holds"),
    [
        (1.0, 0, 0.0, 0.0, True),
        (0.999, 1, 1e-3, 1.5, True),
        (0.9989, 1, 0.0, 0.0, False),
        (1.0, 2, 0.0, 0.0, False),
        (0.9999, 2, 0.0, 0.0, False),
        (1.0, 0, 1.1e-3, 0.0, False),
        (1.0, 0, 0.0, 1.51, False),
    ],
)
def test_limits_are_999_in_1000_one_step_a_thousandth_of_the_output_and_half_more_noise(
    share, steps, error, noise, holds
):
    found = SimulationMatch(
        top1=0.5,
        equal_share=share,
        max_abs_difference_in_steps=steps,
        worst_tensor="relu",
        output_error=error,
        unwatched_noise=noise,
        count=1,
    )
    assert found.holds is holds


def test_worst_tensor_is_where_the_fault_is(tmp_path):
    tensor = TENSORS[-1]
    found = match(changed(tmp_path, lambda model: replace_operand(model, quantizer_of(model, tensor), 2, one_up)))
    assert found.worst_tensor == tensor
    assert found.equal_share < 0.1


def test_top1_compares_the_ends(tmp_path):
    def turn_around(model):
        replace_operand(model, weight_of(model, LAYERS[-1]), 0, lambda weight: -np.maximum(weight, -127))
        replace_operand(model, bias_of(model, LAYERS[-1]), 0, lambda bias: -bias)

    assert match(exported(NAME).path).top1 >= 7 / 8
    assert match(changed(tmp_path, turn_around)).top1 <= 1 / 8


def test_every_batch_of_many_images_counts(monkeypatch):
    """Three steps off in the last 4 of 20 images, in batches of 8."""
    monkeypatch.setattr(verification, "_BATCH", 8 * normalized(1)[0].numel())
    tensor = TENSORS[-1]
    sound = watch(exported(NAME).quantized, exported(NAME).path)

    def faulty(batch):
        output, values = sound(batch)
        if len(batch) == 4:
            values[tensor] = np.where(values[tensor] > 100, values[tensor] - 3, values[tensor] + 3).astype(np.uint8)
        return output, values

    runtime = replace(RUNTIME, watch=lambda quantized, path: faulty)
    found = match_simulation(exported(NAME).quantized, exported(NAME).path, normalized(20, seed=9), runtime)
    assert found.count == 20
    assert found.worst_tensor == TENSORS[-1]
    assert found.equal_share == pytest.approx(0.8)
    assert found.max_abs_difference_in_steps == 3
    assert not found.holds


def test_layer_sqnr_of_the_last_layer_is_that_of_the_output(monkeypatch):
    # more than one batch of the verification, the last one smaller
    monkeypatch.setattr(verification, "_BATCH", 8 * normalized(1)[0].numel())
    quantized, images = exported(NAME).quantized, normalized(20, seed=9)
    with torch.no_grad():
        expected, answer = quantized.float_module(images).double(), quantized.module(images).double()
    ratio = 10 * torch.log10(expected.square().sum() / (expected - answer).square().sum())
    found = layer_sqnr_db(quantized, images)
    assert list(found) == LAYERS == ["stem.0", "left.0", "head"]
    assert found["head"] == pytest.approx(float(ratio), rel=1e-5)


def test_layer_sqnr_of_a_layer_is_taken_behind_its_activation():
    quantized, images = exported(NAME).quantized, normalized(8, seed=9)
    stem = exported(NAME).model.stem
    by_name = {node.name: node for node in quantized.module.graph.nodes}
    dequantize = by_name[next(tensor.value for tensor in quantized.tensors if tensor.name == "relu")]
    from dffg.graph.nodes import with_output

    with torch.no_grad():
        expected = stem(images).double()
        answer = with_output(quantized.module, [dequantize])(images)[0].double()
    ratio = 10 * torch.log10(expected.square().sum() / (expected - answer).square().sum())
    assert layer_sqnr_db(quantized, images)["stem.0"] == pytest.approx(float(ratio), rel=1e-4)


def test_layer_sqnr_falls_with_fewer_bits():
    network = capture(exported(NAME).model, spec=SPEC)
    ratios = [
        layer_sqnr_db(
            simulate(network, [normalized(16)], QuantizationConfig(bits=bits, reduce_range=False)),
            normalized(8, seed=9),
        )
        for bits in ("W8A8", "W6A6", "W4A4")
    ]
    for more, fewer in pairwise(ratios):
        assert all(more[name] > fewer[name] for name in LAYERS)
        # two bits are worth 12 dB; images that leave the calibrated ranges blur this towards the end
        assert more["stem.0"] > fewer["stem.0"] + 9


def test_the_simulation_goes_on_with_the_integers_of_the_runtime():
    quantized, images = exported(NAME).quantized, normalized(4, seed=9)
    _, values = watch(quantized, exported(NAME).path)(images.numpy())
    steps, answer = _follow(quantized, images, values)
    moved = values[TENSORS[0]]
    values[TENSORS[0]] = np.where(moved < 128, moved + 100, moved - 100).astype(np.uint8)
    moved_steps, moved_answer = _follow(quantized, images, values)
    assert steps[TENSORS[0]].max() == 0
    assert moved_steps[TENSORS[0]].min() == 100
    assert moved_steps[TENSORS[1]].max() > 1  # computed from what was moved, compared with what was not
    assert np.array_equal(moved_steps[TENSORS[-1]], steps[TENSORS[-1]])  # and so on: every layer for itself
    assert np.array_equal(moved_answer, answer)


def test_a_tie_may_be_rounded_either_way_and_nothing_else():
    """Values in steps of 1 around the middle between 2 and 3."""
    quantized, images = exported(NAME).quantized, normalized(1, seed=9)
    _, values = watch(quantized, exported(NAME).path)(images.numpy())
    scale = float(quantized.module.get_buffer("x_scale"))
    zero_point = int(quantized.module.get_buffer("x_zero_point"))
    positions = torch.tensor([2.5 - 1e-5, 2.5, 2.5 + 1e-5, 2.49, 2.51]) - zero_point
    images[0, 0, 0, :5] = positions * scale
    for level, apart in ((2, [0, 0, 0, 0, 1]), (3, [0, 0, 0, 1, 0]), (4, [1, 1, 1, 2, 1])):
        values["x"][0, 0, 0, :5] = level
        steps, _ = _follow(quantized, images, values)
        assert steps["x"][0, 0, 0, :5].tolist() == apart


def test_fails_when_the_file_has_more_noise_unless_it_is_watched():
    quantized, path = exported(NAME).quantized, exported(NAME).path
    images = normalized(8, seed=9)
    with torch.no_grad():
        in_float = quantized.float_module(images).numpy()

    def found_with(times):
        """As near to the float network's answer as this, on the other side of it."""
        moved = in_float - np.sqrt(times) * (RUNTIME.open(path, 0).run(images.numpy()) - in_float)
        other = replace(RUNTIME, open=lambda path, threads: Opened(run=lambda _: moved, outputs=1))
        return match_simulation(quantized, path, images, other)

    assert found_with(1.4).unwatched_noise == pytest.approx(1.4, rel=1e-2)
    assert found_with(1.4).holds
    assert found_with(1.6).equal_share == 1.0
    assert not found_with(1.6).holds
