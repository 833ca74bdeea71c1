"""Files for OpenVINO, in OpenVINO."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.data import load_data
from dffg.export.openvino import RUNTIME, count_kernels, open_file, read_spec, watch, write, write_float_file
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.onnx_file import read_spec as read_onnx_spec
from dffg.pipeline.evaluate import evaluate
from dffg.pipeline.steps import finetune, quantize
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized
from tests.export import FLOAT_OPERATIONS, MIDDLES, SPEC, exported, folder, normalized
from tests.networks import randomize

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; dffg[openvino] brings it.")
NAME = "residual"


@cache
def written(name: str) -> Path:
    path = folder() / f"openvino-{name}" / "model.xml"
    path.parent.mkdir()
    write(exported(name).quantized, SPEC, path)
    return path


def narrow(bits: str, **options: object) -> Quantized:
    model = randomize(MIDDLES["depthwise"](), seed=3)
    config = QuantizationConfig(bits=bits, target="openvino", **options)
    return simulate(capture(model, spec=SPEC), [normalized(16)], config)


def changed(tmp_path: Path, before: str, after: str) -> Path:
    """A copy of the IR with another text in it."""
    text = written(NAME).read_text()
    assert before in text
    (tmp_path / "model.xml").write_text(text.replace(before, after))
    (tmp_path / "model.bin").write_bytes(written(NAME).with_suffix(".bin").read_bytes())
    return tmp_path / "model.xml"


@pytest.mark.parametrize("name", [*MIDDLES, *FLOAT_OPERATIONS])
def test_computes_what_was_decided(name):
    found = match_simulation(exported(name).quantized, written(name), normalized(8, seed=9), RUNTIME)
    assert found.holds, found
    assert found.top1 >= 7 / 8


@pytest.mark.parametrize("name", [*MIDDLES, *FLOAT_OPERATIONS])
def test_every_layer_runs_in_integers(name):
    kernels = count_kernels(written(name))
    assert (kernels.integer, kernels.float) == (len(exported(name).quantized.layers), 0)


def test_float_layers_count_as_float(tmp_path):
    write_float_file(exported("concat").quantized.float_module, SPEC, tmp_path / "model.xml")
    kernels = count_kernels(tmp_path / "model.xml")
    assert (kernels.integer, kernels.float) == (0, 4)
    assert kernels.other["Concatenation"] == 1


def test_float_files_compute_the_float_network(tmp_path):
    path, images = tmp_path / "model.xml", normalized(4, seed=9)
    write_float_file(exported(NAME).quantized.float_module, SPEC, path)
    with torch.no_grad():
        expected = exported(NAME).model(images).numpy()
    np.testing.assert_allclose(open_file(path).run(images.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        ("W4A8", {}),
        ("W3A8", {}),
        ("W4A4", {}),
        ("W6A6", {}),
        ("W3A2", {"first_last_bits": 8}),
        ("W4A4", {"other_bits": 4}),
    ],
)
def test_fewer_bits_are_exact_and_run_in_integers(bits, options, tmp_path):
    quantized = narrow(bits, **options)
    write(quantized, SPEC, tmp_path / "model.xml")
    found = match_simulation(quantized, tmp_path / "model.xml", normalized(8, seed=9), RUNTIME)
    assert found.holds, found
    assert count_kernels(tmp_path / "model.xml").float == 0


def test_four_bits_take_half_a_byte(tmp_path):
    sizes = {}
    for bits in ("W8A8", "W4A8"):
        (tmp_path / bits).mkdir()
        quantized = narrow(bits)
        write(quantized, SPEC, tmp_path / bits / "model.xml")
        sizes[bits] = (tmp_path / bits / "model.bin").stat().st_size
    weights = sum(quantized.module.get_buffer(f"{layer.node}_weight").numel() for layer in quantized.layers)
    # the rest, scales and biases, is the same
    assert sizes["W8A8"] - sizes["W4A8"] == pytest.approx(weights / 2, abs=8)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bits": "W2A8"}, "weights of 2 bits; choose 3 or more"),
        ({"bits": "W4A8", "first_last_bits": 2}, "weights of 2 bits"),
        ({"bits": "mixed", "budget": "bits=4", "candidate_bits": "2,4"}, "weights of 2 bits"),
    ],
)
def test_two_bits_are_refused(options, what):
    with pytest.raises(InputError, match=f"openvino cannot run {what}"):
        QuantizationConfig(target="openvino", **options)


def test_mixed_widths_are_chosen_from_those_it_runs():
    assert QuantizationConfig(bits="mixed", budget="size=0.5x", target="openvino").candidates == (4, 8)
    assert QuantizationConfig(bits="mixed", budget="bops=0.5x", target="openvino").candidates == (3, 4, 5, 6, 8)


def test_watching_shows_the_integers():
    images = normalized(2, seed=9)
    output, values = watch(exported(NAME).quantized, written(NAME))(images.numpy())
    assert list(values) == [tensor.name for tensor in exported(NAME).quantized.tensors]
    scale, zero_point = (exported(NAME).quantized.module.get_buffer(f"x_{part}") for part in ("scale", "zero_point"))
    expected = np.clip(np.rint(images.numpy() / np.float32(scale)) + int(zero_point), 0, 255)
    np.testing.assert_array_equal(values["x"], expected)
    np.testing.assert_array_equal(output, open_file(written(NAME)).run(images.numpy()))


def test_a_result_stays_when_the_next_batch_is_run():
    run = open_file(written(NAME)).run
    first = run(normalized(2, seed=9).numpy())
    kept = first.copy()
    run(normalized(2, seed=10).numpy())
    np.testing.assert_array_equal(first, kept)


def test_another_clip_or_scale_is_found(tmp_path):
    """The number of levels of every activation, halved."""
    path = changed(tmp_path, 'levels="256"', 'levels="128"')
    assert not match_simulation(exported(NAME).quantized, path, normalized(8, seed=9), RUNTIME).holds


def test_a_changed_weight_is_found(tmp_path):
    path = changed(tmp_path, "<net", "<net")
    content = bytearray(path.with_suffix(".bin").read_bytes())
    largest = int(np.abs(np.frombuffer(bytes(content[: 3 * 8 * 9]), np.int8).astype(int)).argmax())
    content[largest] ^= 0x80
    path.with_suffix(".bin").write_bytes(content)
    assert not match_simulation(exported(NAME).quantized, path, normalized(8, seed=9), RUNTIME).holds


def test_the_file_says_what_its_input_is():
    assert read_spec(written(NAME)) == SPEC
    assert read_onnx_spec(written(NAME).with_suffix(".onnx")) == SPEC


def test_a_file_of_others_says_nothing_of_its_input(tmp_path):
    model = openvino.Core().read_model(written(NAME))
    stripped = openvino.Model(model.get_results(), model.get_parameters(), "other")
    openvino.save_model(stripped, tmp_path / "other.xml")
    assert read_spec(tmp_path / "other.xml") is None


def test_what_is_no_ir_is_explained(tmp_path):
    (tmp_path / "model.xml").write_text("rubbish")
    with pytest.raises(InputError, match=r"OpenVINO cannot load .*model\.xml: (?!Exception from)"):
        open_file(tmp_path / "model.xml")


def test_the_whole_road(digits, tmp_path):
    quick = SynthesisConfig(count=32, batch_size=16, steps=8, seed=1)
    np.savez(tmp_path / "digits.npz", features=digits.images, labels=digits.labels)
    from benchmarks.digits import SPEC as DIGITS

    data = load_data(tmp_path / "digits.npz", DIGITS, labelled=True)
    options = {"spec": DIGITS, "synthesis": quick, "evaluation": data}
    result = quantize(digits.model, tmp_path / "out", quantization=QuantizationConfig(target="openvino"), **options)
    assert result.verified
    assert (result.kernels.integer, result.kernels.float) == (5, 0)
    assert abs(result.accuracy.drop_points) < 1.5
    assert result.target == json.loads((tmp_path / "out" / "report.json").read_text())["target"] == "openvino"
    assert set(result.files) == {"model.xml", "model.bin", "model.onnx", "images.npz", "parameters.npz", "report.html"}
    assert evaluate(tmp_path / "out" / "model.xml", data).top1 == pytest.approx(result.accuracy.quantized_top1)
    tuned = finetune(digits.model, tmp_path / "out", tmp_path / "tuned", steps=2, spec=DIGITS)
    assert tuned.target == "openvino"
    assert tuned.verified
    moved = finetune(digits.model, tmp_path / "out", tmp_path / "moved", steps=2, spec=DIGITS, target="onnxruntime")
    assert moved.target == "onnxruntime"
    assert (tmp_path / "moved" / "model.onnx").exists()
    assert not (tmp_path / "moved" / "model.xml").exists()
