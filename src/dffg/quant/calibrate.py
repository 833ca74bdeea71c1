"""Watch the float network on calibration images and choose the range of every quantized tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from dffg.config import QuantizationConfig
from dffg.ends import INPUT
from dffg.errors import InputError
from dffg.graph import Tap, calls
from dffg.images import ImageSpec
from dffg.quant.affine import QParams, activation_qparams, signed_qparams
from dffg.quant.placement import Placement, clip_bounds
from dffg.quant.ranges import ACTIVATION_RANGES, Histogram
from dffg.quant.widths import BitWidths

_ROOM = 2


def observed_tensors(placement: Placement) -> list[str]:
    """Quantized tensors whose range must be learned from images."""
    return [node.name for node, source in placement.source.items() if source is node and not _is_input(node)]


def choose_ranges(
    histograms: dict[str, Histogram],
    placement: Placement,
    spec: ImageSpec,
    widths: BitWidths,
    config: QuantizationConfig,
) -> dict[str, QParams]:
    """Turn what was observed into scale and zero point; the input gets the legal pixel range, an answer twice what
    was seen."""
    bits, signed = widths.activations, config.runtime.signed
    choose = ACTIVATION_RANGES[config.activation_ranges]
    ranges = {
        name: choose(histogram.mirrored() if signed else histogram, bits[name], config)
        for name, histogram in histograms.items()
    }
    ranges |= {node.name: _with_room(histograms[node.name], node) for node in placement.answers if not _is_input(node)}
    low, high = (torch.from_numpy(bound) for bound in spec.input_bounds())
    for node, source in placement.source.items():
        if node is source and _is_input(node):
            ends = [node.target(bound[None], *node.args[1:]) if calls(node, INPUT) else bound for bound in (low, high)]  # type: ignore
            ranges[node.name] = float(ends[0].min()), float(ends[1].max())
    to_qparams = signed_qparams if signed else activation_qparams
    return {name: to_qparams(*range, bits[name]) for name, range in ranges.items()}


def _with_room(histogram: Histogram, answer: fx.Node) -> tuple[float, float]:
    """On synthetic images a network is less sure, and its logits are about half as large, than on real ones.

    A step twice as long costs little: clipped logits cost EfficientNet-Lite0 and MobileNetV2 much more. What an
    activation clips cannot get larger.
    """
    low, high = clip_bounds(answer) or (-math.inf, math.inf)
    return max(_ROOM * histogram.low, low), min(_ROOM * histogram.high, high)


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder" or calls(node, INPUT)


def observe(module: fx.GraphModule, names: Iterable[str], images: Iterable[Tensor]) -> dict[str, Histogram]:
    """Histogram of every named tensor over a stream of images."""
    histograms = {name: Histogram() for name in names}

    def visit(name: str, value: Any) -> Any:
        if name in histograms:
            histograms[name].observe(value)
        return value

    interpreter = Tap(module, visit)
    batches = 0
    with torch.no_grad():
        for batch in images:
            interpreter.run(batch)
            batches += 1
    if not batches:
        raise InputError("there are no calibration images; give at least one batch.")
    return histograms
