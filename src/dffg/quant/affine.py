"""Integer arithmetic of one tensor: x ~ scale * (q - zero_point)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny * 2**24


@dataclass(frozen=True, kw_only=True)
class QParams:
    """Scale and zero point of one tensor, exactly as they are exported.

    scale: float32, () per tensor or (channels,) along `axis`; zero_point: the same shape, in the stored integer type;
    quant_min and quant_max: the integers in use, which may be fewer than the type holds.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None

    @property
    def bits(self) -> int:
        """Width of the integers in use."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value that can be represented (over all channels)."""
        low = self.scale * (self.quant_min - self.zero_point.float())
        high = self.scale * (self.quant_max - self.zero_point.float())
        return float(low.min()), float(high.max())

    def on(self, device: torch.device) -> QParams:
        """The same on a device."""
        return replace(self, scale=self.scale.to(device), zero_point=self.zero_point.to(device))


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """clip(round(x / scale) + zero_point, quant_min, quant_max), ties to even, as ONNX QuantizeLinear defines it."""
    scale, zero_point = _broadcast(qparams, x.dim())
    # In place on a fresh tensor: allocating one per operation takes longer than the arithmetic.
    levels = (x / scale).round_().add_(zero_point)
    return levels.clamp_(qparams.quant_min, qparams.quant_max).to(qparams.zero_point.dtype)


def dequantize(levels: Tensor, qparams: QParams) -> Tensor:
    """scale * (q - zero_point) in float32."""
    scale, zero_point = _broadcast(qparams, levels.dim())
    return levels.to(torch.float32, copy=True).sub_(zero_point).mul_(scale)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Round to what the integers can represent, and stay in float."""
    return dequantize(quantize(x, qparams), qparams)


def activation_qparams(low: float, high: float, bits: int) -> QParams:
    """Affine uint8 parameters of a range. The range is widened to contain 0, which is then represented exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    quant_max = 2**bits - 1
    scale = torch.tensor(max((high - low) / quant_max, _SMALLEST_SCALE), dtype=torch.float32)
    zero_point = int(torch.round(-low / scale).clamp(0, quant_max))
    return QParams(
        scale=scale, zero_point=torch.tensor(zero_point, dtype=torch.uint8), quant_min=0, quant_max=quant_max
    )


def signed_qparams(low: float, high: float, bits: int) -> QParams:
    """Symmetric int8 parameters of a range: zero point 0, the larger end at the largest integer."""
    quant_max = 2 ** (bits - 1) - 1
    scale = torch.tensor(max(-low, high) / quant_max, dtype=torch.float32).clamp(min=_SMALLEST_SCALE)
    return QParams(
        scale=scale, zero_point=torch.tensor(0, dtype=torch.int8), quant_min=-quant_max - 1, quant_max=quant_max
    )


def weight_qparams(scale: Tensor, bits: int) -> QParams:
    """Symmetric int8 parameters, one scale per output channel (axis 0)."""
    return QParams(
        scale=scale.clamp(min=_SMALLEST_SCALE),
        zero_point=torch.zeros(len(scale), dtype=torch.int8),
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        axis=0,
    )


def bias_qparams(input_scale: Tensor, weight_scale: Tensor) -> QParams:
    """int32 parameters of a bias: it is added to products of integer inputs and weights, so it shares their scale."""
    return QParams(
        scale=input_scale * weight_scale,
        zero_point=torch.zeros(len(weight_scale), dtype=torch.int32),
        quant_min=-(2**31) + 1,
        quant_max=2**31 - 1,
        axis=0,
    )


def widen_for_bias(weight_scale: Tensor, input_scale: Tensor, bias: Tensor) -> Tensor:
    """Raise the scale of channels whose bias would not fit in 31 bits.

    Channels with (nearly) zero weights, which pruned and over-wide networks have, would get a tiny scale and lose their
    bias; their weights have nothing to lose.
    """
    return torch.maximum(weight_scale, bias.abs() / (input_scale * 2.0**30))


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Values of the output channels (channels,), shaped to be used on a weight (channels, ...)."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def _broadcast(qparams: QParams, dims: int) -> tuple[Tensor, Tensor]:
    shape = () if qparams.axis is None else [-1 if dim == qparams.axis else 1 for dim in range(dims)]
    return qparams.scale.reshape(shape), qparams.zero_point.to(torch.float32).reshape(shape)
