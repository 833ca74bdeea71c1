"""Choosing the range of a tensor: what to clip so that the rest is finer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dffg.config import QuantizationConfig
from dffg.errors import InputError

_BINS = 2048
_CANDIDATES = 100


class Histogram:
    """Counts of a stream of values over equal bins that grow with it; memory does not depend on the stream.

    When a value falls outside, the width of the bins is doubled as often as needed and neighbours are merged, which
    moves no count by more than the width of a bin. `low` and `high` are the exact extremes seen.
    """

    def __init__(self) -> None:
        self.low = float("inf")
        self.high = float("-inf")
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self._start = 0.0
        self._width = 0.0

    def observe(self, values: Tensor) -> None:
        """Add all values of a tensor."""
        low, high = (float(extreme) for extreme in torch.aminmax(values.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                "calibration images lead to NaN or infinite activations; check the images and the network."
            )
        if self._width == 0.0:
            self._start = low
            self._width = max(high - low, abs(low) * 1e-3, 1e-12) / _BINS
        self.low, self.high = min(self.low, low), max(self.high, high)
        while not self._start <= low or not high <= self._start + _BINS * self._width:
            self._grow(downwards=low < self._start)
        end = self._start + _BINS * self._width
        self.counts += torch.histc(values.detach().float(), _BINS, self._start, end).double()

    @property
    def centers(self) -> Tensor:
        """Middle of every bin."""
        return self._start + self._width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _grow(self, downwards: bool) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        empty = torch.zeros_like(merged)
        self.counts = torch.cat([empty, merged] if downwards else [merged, empty])
        if downwards:
            self._start -= _BINS * self._width
        self._width *= 2


Range = tuple[float, float]


def minmax_range(histogram: Histogram, bits: int, config: QuantizationConfig) -> Range:
    """Everything that was seen."""
    return histogram.low, histogram.high


def percentile_range(histogram: Histogram, bits: int, config: QuantizationConfig) -> Range:
    """The central `config.percentile` percent: half of the rest is clipped at each end."""
    shares = histogram.counts.cumsum(0) / histogram.counts.sum()
    tail = (1 - config.percentile / 100) / 2
    first = int(torch.searchsorted(shares, tail))
    last = int(torch.searchsorted(shares, 1 - tail))
    centers = histogram.centers
    low, high = float(centers[first]), float(centers[min(last, _BINS - 1)])
    return max(low, histogram.low), min(high, histogram.high)


def mse_range(histogram: Histogram, bits: int, config: QuantizationConfig) -> Range:
    """The range, among shrunk copies of the widest one, with the smallest mean squared error of its grid."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shrink = torch.linspace(1.0, 0.1, _CANDIDATES, dtype=torch.float64).unsqueeze(1)
    occupied = histogram.counts > 0
    values, counts = histogram.centers[occupied], histogram.counts[occupied]
    scale = (shrink * (high - low) / (2**bits - 1)).clamp(min=1e-30)
    zero_point = torch.round(-shrink * low / scale)
    levels = (torch.round(values / scale) + zero_point).clamp(0, 2**bits - 1)
    error = ((scale * (levels - zero_point) - values).square() * counts).sum(1)
    best = float(shrink[int(error.argmin()), 0])
    return best * low, best * high


RangeFunction = Callable[[Histogram, int, QuantizationConfig], Range]
ACTIVATION_RANGES: dict[str, RangeFunction] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
}


def minmax_weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Scale per output channel with which the largest weight is the largest integer."""
    scale: Tensor = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    return scale


def mse_weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Scale per output channel with the smallest mean squared error, among shrunk copies of the min/max scale."""
    flat = weight.flatten(1)
    widest = minmax_weight_scale(weight, bits)
    best_scale, best_error = widest.clone(), torch.full_like(widest, float("inf"))
    for shrink in torch.linspace(1.0, 0.2, _CANDIDATES).tolist():
        scale = (widest * shrink).clamp(min=1e-30).unsqueeze(1)
        levels = torch.round(flat / scale).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (levels * scale - flat).square().mean(1)
        better = error < best_error
        best_scale = torch.where(better, scale.squeeze(1), best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale


WEIGHT_RANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "minmax": minmax_weight_scale,
    "mse": mse_weight_scale,
}
