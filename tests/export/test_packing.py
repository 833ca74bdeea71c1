"""Integers of weights take the bits they have, and the runtime computes with them as before."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from dffg.config import QuantizationConfig
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import count_kernels
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized, weight_name
from dffg.quant.widths import stored_bits
from tests.export import MIDDLES, SHAPE, SPEC
from tests.networks import inputs, randomize

STORED = {2: TensorProto.INT2, 3: TensorProto.INT4, 4: TensorProto.INT4, 5: TensorProto.INT8, 7: TensorProto.INT8}


def written(path: Path, bits: str, first_last_bits: int | None = None) -> tuple[Quantized, onnx.ModelProto]:
    network = capture(randomize(MIDDLES["residual"]()), spec=SPEC)
    config = QuantizationConfig(bits=bits, first_last_bits=first_last_bits)
    quantized = simulate(network, [inputs(SHAPE, 8)], config)
    write_quantized(quantized, SPEC, path)
    return quantized, onnx.load(path)


@pytest.mark.parametrize("activation_bits", [2, 4, 8])
@pytest.mark.parametrize("weight_bits", STORED)
def test_every_width_runs_in_integers_and_computes_what_was_simulated(
    tmp_path: Path, weight_bits: int, activation_bits: int
) -> None:
    path = tmp_path / "packed.onnx"
    quantized, model = written(path, f"W{weight_bits}A{activation_bits}")
    kinds = {entry.name: entry.data_type for entry in model.graph.initializer}
    raw = {entry.name: len(entry.raw_data) for entry in model.graph.initializer}
    for layer in quantized.layers:
        name = weight_name(layer.node)
        assert kinds[name] == STORED[weight_bits]
        assert raw[name] == math.ceil(quantized.module.get_buffer(name).numel() * stored_bits(weight_bits) / 8)
    assert count_kernels(path).float == 0
    match = match_simulation(quantized, path, inputs(SHAPE, 8))
    assert match.holds
    assert torch.isfinite(quantized.module(inputs(SHAPE, 8))).all()


@pytest.mark.parametrize("weight_bits", [2, 4])
def test_the_integers_are_those_of_torch(tmp_path: Path, weight_bits: int) -> None:
    quantized, model = written(tmp_path / "packed.onnx", f"W{weight_bits}A8")
    stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for layer in quantized.layers:
        expected = quantized.module.get_buffer(weight_name(layer.node)).numpy()
        assert len(np.unique(expected)) > 2
        np.testing.assert_array_equal(stored[weight_name(layer.node)].astype(np.int8), expected)


def test_only_two_bits_need_the_newer_format(tmp_path: Path) -> None:
    for bits, opset in (("W4A8", 21), ("W2A8", 25)):
        _, model = written(tmp_path / f"{bits}.onnx", bits)
        assert [entry.version for entry in model.opset_import] == [opset]


def test_layers_of_several_widths_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "packed.onnx"
    quantized, model = written(path, "W4A4", first_last_bits=8)
    kinds = {entry.name: entry.data_type for entry in model.graph.initializer}
    stored = [kinds[weight_name(layer.node)] for layer in quantized.layers]
    assert stored == [TensorProto.INT8, *[TensorProto.INT4] * (len(stored) - 2), TensorProto.INT8]
    assert count_kernels(path).float == 0
    assert match_simulation(quantized, path, inputs(SHAPE, 8)).holds


def test_four_bits_take_half_the_bytes_of_eight(tmp_path: Path) -> None:
    sizes = {}
    for bits in ("W8A8", "W4A8"):
        quantized, model = written(tmp_path / f"{bits}.onnx", bits)
        names = {weight_name(layer.node) for layer in quantized.layers}
        sizes[bits] = sum(len(entry.raw_data) for entry in model.graph.initializer if entry.name in names)
    assert sizes["W8A8"] / 2 <= sizes["W4A8"] <= sizes["W8A8"] / 2 + len(names)
