"""The operators a quantized graph is written in; each stands for one ONNX operator with the same meaning.

A simulated network is an ordinary torch.fx graph with these calls in it, so that what is simulated, what is exported
and what is verified are the same nodes with the same parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dffg.quant.affine import QParams
from dffg.quant.affine import dequantize as _dequantize
from dffg.quant.affine import quantize as _quantize

_library = torch.library.Library("dffg", "FRAGMENT")
_library.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int quant_min, int quant_max) -> Tensor")
_library.define("dequantize(Tensor levels, Tensor scale, Tensor zero_point, int? axis=None) -> Tensor")
_library.define("global_average_pool(Tensor x) -> Tensor")


def _run_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return _quantize(x, QParams(scale=scale, zero_point=zero_point, quant_min=quant_min, quant_max=quant_max))


def _run_dequantize(levels: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    return _dequantize(levels, QParams(scale=scale, zero_point=zero_point, quant_min=0, quant_max=0, axis=axis))


def global_average_pool(x: Tensor) -> Tensor:
    """Means over all pixels, (batch, channels, 1, ...)."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


_library.impl("quantize", _run_quantize, "CompositeExplicitAutograd")
_library.impl("dequantize", _run_dequantize, "CompositeExplicitAutograd")
_library.impl("global_average_pool", global_average_pool, "CompositeExplicitAutograd")


def _imagine_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


def _imagine_dequantize(levels: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    return torch.empty_like(levels, dtype=torch.float32)


# An export traces the graph several times with tensors that have no values. Told what shape results have, it does not
# look into the arithmetic, which takes half of its time away.
torch.library.register_fake("dffg::quantize", _imagine_quantize, lib=_library)
torch.library.register_fake("dffg::dequantize", _imagine_dequantize, lib=_library)


def _remember_shape(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _spread_over_pool(ctx: Any, gradient: Tensor) -> Tensor:
    shape: torch.Size = ctx.shape
    return gradient.expand(shape) / math.prod(shape[2:])


torch.library.register_autograd(
    "dffg::global_average_pool", _spread_over_pool, setup_context=_remember_shape, lib=_library
)

QUANTIZE = torch.ops.dffg.quantize.default
DEQUANTIZE = torch.ops.dffg.dequantize.default
GLOBAL_AVERAGE_POOL = torch.ops.dffg.global_average_pool.default
# What a layer reads of a tensor that keeps more bits for others.
COPY = torch.ops.aten.clone.default
