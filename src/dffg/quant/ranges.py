"""Choosing the range of a tensor: what to clip so that the rest is finer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dffg.config import QuantizationConfig
from dffg.errors import InputError

_BINS = 2048
_CANDIDATES = 100
_SAMPLED = 2**16


class Histogram:
    """Counts of a stream of values over equal bins that grow with it; memory does not depend on the stream.

    When a value falls outside, the width of the bins is doubled as often as needed and neighbors are merged, which
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
        low, high = map(float, torch.aminmax(_in_memory_order(values.detach())))
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
        sample = _in_memory_order(_sample(values.detach()))
        # torch.histc takes twice as long
        bins = sample.double().sub_(self._start).div_(self._width).int().clamp_(0, _BINS - 1)
        self.counts += torch.bincount(bins, minlength=_BINS) * (values.numel() / sample.numel())

    @property
    def bin_width(self) -> float:
        """Width of every bin."""
        return self._width

    @property
    def centers(self) -> Tensor:
        """Middle of every bin."""
        return self._start + self._width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def mirrored(self) -> Histogram:
        """Of all values and their negatives, for a range around 0."""
        both = Histogram()
        both.high = max(-self.low, self.high)
        both.low = both._start = -both.high
        both._width = max(2 * both.high / _BINS, self._width)
        occupied = self.counts > 0
        for values in (self.centers[occupied], -self.centers[occupied]):
            bins = ((values - both._start) / both._width).long().clamp(0, _BINS - 1)
            both.counts += torch.bincount(bins, self.counts[occupied], minlength=_BINS)
        return both

    def _grow(self, downwards: bool) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        empty = torch.zeros_like(merged)
        self.counts = torch.cat([empty, merged] if downwards else [merged, empty])
        if downwards:
            self._start -= _BINS * self._width
        self._width *= 2


def _in_memory_order(values: Tensor) -> Tensor:
    """All values in a row, without a copy where they lie side by side: reductions of other layouts take far longer."""
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True)).reshape(-1)


def _sample(values: Tensor) -> Tensor:
    """Every n-th row and column of large square maps, so that at least `_SAMPLED` values of a batch are left.

    Of tensors of another form, where channels may come last, and of maps of which hardly a row would be left, every
    n-th value, where n shares no factor with any size: no channel and no place is passed over.
    Counting all takes three times as long as the network that makes them.
    """
    spatial = values.dim() - 2
    step = max(1, int((values.numel() / _SAMPLED) ** (1 / max(spatial, 1))))
    if spatial < 2 or values.shape[-1] != values.shape[-2] or 2 * step >= values.shape[-1]:
        return _in_memory_order(values)[:: _coprime(values.numel() // _SAMPLED, values.shape)]
    for dim in range(2, values.dim()):
        values = values[(slice(None),) * dim + (slice(None, None, step),)]
    return values


def _coprime(least: int, sizes: Sequence[int]) -> int:
    """The first number from `least` up that shares no factor with any size."""
    return next(number for number in itertools.count(max(least, 1)) if math.gcd(number, math.prod(sizes)) == 1)


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
    return _least_error_range(histogram, bits, 2.0)


def lp_range(histogram: Histogram, bits: int, config: QuantizationConfig) -> Range:
    """As `mse_range` with the mean of |error|^norm: above 2, clipping hurts more and the range is wider.

    Source: Nahshan et al. (LAPQ, Machine Learning 2021), who try several norms. 2.4, the default, is ours.
    """
    return _least_error_range(histogram, bits, config.norm)


def _least_error_range(histogram: Histogram, bits: int, norm: float) -> Range:
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shrink = torch.linspace(1.0, 0.1, _CANDIDATES, dtype=torch.float64).unsqueeze(1)
    occupied = histogram.counts > 0
    values, counts = histogram.centers[occupied], histogram.counts[occupied]
    scale = (shrink * (high - low) / (2**bits - 1)).clamp(min=1e-30)
    zero_point = torch.round(-shrink * low / scale)
    levels = (torch.round(values / scale) + zero_point).clamp(0, 2**bits - 1)
    error = ((scale * (levels - zero_point) - values).abs().pow(norm) * counts).sum(1)
    best = float(shrink[int(error.argmin()), 0])
    return best * low, best * high


_SIGMAS = {4: 12.0, 6: 14.0, 8: 25.0}
_SIGMA_UNCAPPED_BITS = 6


def sigma_range(histogram: Histogram, bits: int, config: QuantizationConfig) -> Range:
    """k standard deviations of the positive values, and as many of the negative ones below 0.

    k is 12, 14 and 25 up to 4, 6 and 8 bits; below 6 bits the range ends at what was seen. Source: the released code
    of SQuant (Guo et al., ICLR 2022), which has non-negative activations only, calibrates them with unnormalized
    uniform noise and relies on the generous factor. Here a range ends where the activation clips; theirs does not.
    """
    sigmas = next(factor for width, factor in _SIGMAS.items() if bits <= width)
    # The bin that holds 0 is left out: after ReLU most values are 0, and belong to neither side.
    low = -sigmas * _side_std(histogram, histogram.centers < -histogram.bin_width / 2)
    high = sigmas * _side_std(histogram, histogram.centers > histogram.bin_width / 2)
    if bits >= _SIGMA_UNCAPPED_BITS:
        return low, high
    return max(low, min(histogram.low, 0.0)), min(high, max(histogram.high, 0.0))


def _side_std(histogram: Histogram, side: Tensor) -> float:
    values, counts = histogram.centers[side], histogram.counts[side]
    total = float(counts.sum())
    if total == 0:
        return 0.0
    mean = (values * counts).sum() / total
    return math.sqrt(float(((values - mean).square() * counts).sum() / total))


RangeFunction = Callable[[Histogram, int, QuantizationConfig], Range]
ACTIVATION_RANGES: dict[str, RangeFunction] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "lp": lp_range,
    "sigma": sigma_range,
}

# Whose ends are not values that were seen.
SOUGHT = ("mse", "lp", "sigma")


def minmax_weight_scale(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    """Scale per output channel with which the largest weight is the largest integer."""
    return _largest_weight_scale(weight, bits)


def _largest_weight_scale(weight: Tensor, bits: int) -> Tensor:
    scale: Tensor = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    return scale


def mse_weight_scale(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    """Scale per output channel with the smallest mean squared error, among shrunk copies of the min/max scale."""
    return _least_error_weight_scale(weight, bits, 2.0)


def lp_weight_scale(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    """As `mse_weight_scale` with the mean of |error|^norm; sources in `lp_range`."""
    return _least_error_weight_scale(weight, bits, config.norm)


def _least_error_weight_scale(weight: Tensor, bits: int, norm: float) -> Tensor:
    flat = weight.flatten(1)
    widest = _largest_weight_scale(weight, bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    best_scale, best_error = widest.clone(), torch.full_like(widest, float("inf"))
    error = torch.empty_like(flat)  # used again: fresh memory takes five times as long as the arithmetic
    for shrink in torch.linspace(1.0, 0.2, _CANDIDATES).tolist():
        scale = (widest * shrink).clamp(min=1e-30).unsqueeze(1)
        torch.div(flat, scale, out=error).round_().clamp_(low, high).mul_(scale).sub_(flat)
        mean_error = error.abs_().pow_(norm).mean(1)
        better = mean_error < best_error
        best_scale = torch.where(better, scale.squeeze(1), best_scale)
        best_error = torch.where(better, mean_error, best_error)
    return best_scale


WEIGHT_RANGES: dict[str, Callable[[Tensor, int, QuantizationConfig], Tensor]] = {
    "minmax": minmax_weight_scale,
    "mse": mse_weight_scale,
    "lp": lp_weight_scale,
}
