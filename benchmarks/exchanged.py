"""One network, fixed quantizers, any images: what ONNX Runtime answers, so that only the data differs.

Exporting takes seconds and the same network is quantized hundreds of times, so that it is exported once per pair of bit
widths, and scales, zero points and integers are exchanged in the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from benchmarks.networks import Benchmark
from dffg.config import QuantizationConfig, Scheme
from dffg.export.onnx import write_float, write_quantized
from dffg.export.onnxruntime import session
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import calls, is_stored
from dffg.quant.calibrate import choose_ranges, observe, observed_tensors
from dffg.quant.operators import DEQUANTIZE, QUANTIZE
from dffg.quant.parameters import Parameters
from dffg.quant.placement import place, prepare
from dffg.quant.quantized import Quantized, insert
from dffg.quant.ranges import Histogram
from dffg.quant.rounding import round_layers
from dffg.quant.widths import uniform_widths, with_known_range
from dffg.spec import Array

BATCH = 32
_ZERO_POINTS = 256


class Exchanged:
    """A benchmark network, captured, folded and placed once."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.name = benchmark.name
        self.captured = capture(benchmark.model, spec=benchmark.spec)
        self._module = prepare(fold_batch_norms(self.captured))
        self._placement = place(self._module)
        self._templates: dict[str, onnx.ModelProto] = {}

    def observe(self, images: Array) -> dict[str, Histogram]:
        """Histograms of every tensor whose range is learned, over all calibration images."""
        batches = torch.split(torch.from_numpy(images), BATCH)
        return observe(self._module, observed_tensors(self._placement), batches)

    def answer(self, histograms: dict[str, Histogram], config: QuantizationConfig, inputs: Iterable[Array]) -> Array:
        """Outputs of the quantized network, in ONNX Runtime, on batches of inputs."""
        config = with_known_range(config)
        widths = uniform_widths(self._module, self._placement, config)
        parameters = Parameters(
            activations=choose_ranges(histograms, self._placement, self.captured.spec, widths, config),
            layers=round_layers(self._module, widths, config),
        )
        if config.bits not in self._templates:
            self._templates[config.bits] = self._template(parameters, config)
        model = exchange(self._templates[config.bits], insert(self._module, parameters).module)
        return np.concatenate(list(_run(model.SerializeToString(), inputs)))

    def float_answer(self, inputs: Iterable[Array]) -> Array:
        """Outputs of the float network, in ONNX Runtime."""
        with tempfile.TemporaryDirectory() as folder:
            write_float(self._module, self.captured.spec, Path(folder) / "float.onnx")
            return np.concatenate(list(_run((Path(folder) / "float.onnx").read_bytes(), inputs)))

    def _template(self, parameters: Parameters, config: QuantizationConfig) -> onnx.ModelProto:
        """The exporter merges equal tensors; with a zero point and a scale of its own, every one keeps its name."""
        # Below 8 bits the largest integer is a constant of the file too, and must not be taken for a zero point.
        free = _ZERO_POINTS - (2**config.scheme.activation_bits) % _ZERO_POINTS
        if len(parameters.activations) > free:
            raise ValueError(f"{len(parameters.activations)} quantized tensors; at most {free} can be told apart.")
        unequal = {
            name: replace(
                qparams,
                scale=torch.full_like(qparams.scale, 1.001 + index / 1000),
                zero_point=torch.full_like(qparams.zero_point, _ZERO_POINTS - 1 - index),
            )
            for index, (name, qparams) in enumerate(parameters.activations.items())
        }
        return _export(insert(self._module, replace(parameters, activations=unequal)), self)


def _export(quantized: Quantized, exchanged: Exchanged) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.onnx"
        write_quantized(quantized, exchanged.captured.spec, path)
        return onnx.load(path)


def exchange(template: onnx.ModelProto, module: fx.GraphModule) -> onnx.ModelProto:
    """A copy of an exported file with the scales, zero points and integers of another quantization of its network."""
    model = onnx.ModelProto()
    model.CopyFrom(template)
    stored = dict(_parameters(module))
    for initializer in model.graph.initializer:
        value = stored.pop(initializer.name, None)
        if value is not None:
            initializer.CopyFrom(numpy_helper.from_array(value.numpy(), initializer.name))
    # The zero points of weights are all 0, and merged.
    lost = [name for name, value in stored.items() if value.any()]
    if lost:
        raise ValueError(f"the exported file has no {', '.join(lost[:5])}.")
    return model


def _parameters(module: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    for node in module.graph.nodes:
        if calls(node, QUANTIZE, DEQUANTIZE):
            for source in node.args:
                if is_stored(source):
                    yield source.target, getattr(module, source.target)


def _run(model: bytes, inputs: Iterable[Array]) -> Iterator[Array]:
    opened = session(model)
    name = opened.get_inputs()[0].name
    for batch in inputs:
        yield opened.run(None, {name: batch})[0]


def quantizer(bits: str, ranges: str) -> QuantizationConfig:
    """All tensors at these widths, and nothing that makes up for them. Weights, which no image touches, have MSE scales
    and are rounded to the nearest integer throughout."""
    return QuantizationConfig(
        bits=bits,
        other_bits=Scheme.parse(bits).activation_bits,
        activation_ranges=ranges,
        equalize="none",
        weight_rounding="nearest",
        bias_correction="none",
    )
