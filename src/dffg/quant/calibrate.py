"""Watch the float network on calibration images and choose the range of every quantized tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dffg.bounds import input_bounds
from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.ends import INPUT
from dffg.graph.nodes import Tap, calls, copy_module
from dffg.graph.padding import absorb_padding_
from dffg.machine.device import channels_last, has_fast_bfloat16, in_bfloat16
from dffg.quant.affine import QParams, activation_qparams, signed_qparams
from dffg.quant.moments import Moments
from dffg.quant.placement import Placement, clip_bounds
from dffg.quant.ranges import ACTIVATION_RANGES, Histogram, Range
from dffg.quant.widths import BitWidths
from dffg.spec import ImageSpec

# Error of the answer in bfloat16, relative to the answer: 0.04 in EfficientNet-Lite0, where 8 bits make 0.1.
_BEARABLE = 0.15
# Times of what was seen that an answer may reach.
_ROOM = 2


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A folded float network and what calibration saw in it, before any width is chosen.

    images: those that were looked at; a stream that is read by then where nothing else needs them.
    """

    float_module: fx.GraphModule
    placement: Placement
    moments: dict[str, Moments]
    histograms: dict[str, Histogram]
    images: Iterable[Tensor]
    spec: ImageSpec


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
    bits, signed = widths.activations, config.rules.signed
    choose = ACTIVATION_RANGES[config.activation_ranges]
    ranges = {
        name: choose(histogram.mirrored() if signed else histogram, bits[name], config)
        for name, histogram in histograms.items()
    }
    ranges |= {node.name: _with_room(histograms[node.name]) for node in placement.answers if not _is_input(node)}
    low, high = input_bounds(spec)
    for node, source in placement.source.items():
        if node.name in ranges:
            ranges[node.name] = _within_clip(ranges[node.name], node)
        elif node is source:
            ends = [node.target(bound[None], *node.args[1:]) if calls(node, INPUT) else bound for bound in (low, high)]  # type: ignore
            ranges[node.name] = float(ends[0].min()), float(ends[1].max())
    to_qparams = signed_qparams if signed else activation_qparams
    return {name: to_qparams(*range, bits[name]) for name, range in ranges.items()}


def _with_room(histogram: Histogram) -> Range:
    """On synthetic images a network is less sure, and its logits are about half as large, than on real ones.

    A step twice as long costs little: clipped logits cost EfficientNet-Lite0 and MobileNetV2 much more.
    """
    return _ROOM * histogram.low, _ROOM * histogram.high


def _within_clip(range: Range, node: fx.Node) -> Range:
    """What an activation clips is in no range: it is left out where the range's end does the same."""
    low, high = clip_bounds(node) or (-math.inf, math.inf)
    return max(range[0], low), min(range[1], high)


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder" or calls(node, INPUT)


def observe(
    module: fx.GraphModule, names: Iterable[str], images: Iterable[Tensor], *, exact: bool = True
) -> dict[str, Histogram]:
    """Histogram of every named tensor over a stream of images, by a pass of its own, which should cost little.

    exact: the values are those of the network in float. Else they are those in bfloat16 where that is fast and the
    answer is nearly the same: rounding moves a value by at most 0.4 %, where ends of ranges are sought 0.9 % apart.
    """
    histograms = {name: Histogram() for name in names}
    module = copy_module(module)
    absorb_padding_(module)

    def visit(name: str, value: Any) -> Any:
        if name in histograms:
            histograms[name].observe(value)
        return value

    interpreter = Tap(module, visit)
    narrow: bool | None = None
    for batch in map(channels_last, images):
        if narrow is None:
            narrow = not exact and bears_bfloat16(module, batch[:1])
        with torch.no_grad(), in_bfloat16(batch.device, narrow):
            interpreter.run(batch)
    if narrow is None:
        raise InputError("there are no calibration images; give at least one batch.")
    return histograms


@torch.no_grad()
def bears_bfloat16(module: fx.GraphModule, images: Tensor) -> bool:
    """Whether bfloat16 is fast here, and the network's answer is nearly the same in it."""
    if not has_fast_bfloat16(images.device):
        return False
    try:
        with in_bfloat16(images.device):
            answer = module(images).float()
    except RuntimeError:  # an operator that has no kernel for it
        return False
    expected = module(images)
    return bool((answer - expected).norm() <= _BEARABLE * expected.norm())
