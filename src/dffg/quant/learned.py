"""A quantized network whose rounding, scales and biases can be learned: the float graph with these modules in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dffg.config import Rates
from dffg.machine.device import CUDA, device_of
from dffg.quant.affine import QParams, per_channel
from dffg.quant.parameters import LayerParameters

# Where a weight may start beside the threshold to the next integer, in steps.
_WITHIN = 0.49


class LearnedWeight(nn.Module):
    """Weight of one layer: scale * clip(round(position)), with the position, in steps, and the scale learned.

    The gradient passes through the rounding (straight-through), so that every step sees what rounding does. AdaRound's
    soft rounding (Nagel et al., ICML 2020) sees it only once its penalty has decided, which takes thousands of steps;
    after hundreds it is worse than rounding to the nearest.

    position: where to start, the shape of the weight. `confine` keeps it between the two integers around its start, as
    AdaRound does, and `reach` steps further: with few images, farther moves fit those and no others.
    """

    def __init__(self, position: Tensor, qparams: QParams, reach: float = 0.0) -> None:
        super().__init__()
        self._first = qparams
        self.register_buffer("lowest", position.floor() - reach)
        self.register_buffer("highest", position.floor() + 1 + reach)
        # The gradient of a clip ends before its limits: half a step further, the outermost integers can still move.
        self._ends = (qparams.quant_min - 0.5, qparams.quant_max + 0.5)
        self.register_buffer("first_scale", qparams.scale.clone())
        self.stretch = nn.Parameter(torch.zeros_like(qparams.scale))
        self.position = nn.Parameter(position.clamp(*self._ends))

    def forward(self) -> Tensor:
        """The weight to convolve with."""
        position = self.position.clamp(*self._ends)
        rounded = position + (self._rounded(position) - position).detach()
        return per_channel(self.scale, position) * rounded

    @property
    def scale(self) -> Tensor:
        """The learned scale, per output channel; its logarithm is learned, so that a step is relative."""
        first: Tensor = self.first_scale  # type: ignore[assignment]
        return first * self.stretch.exp()

    @torch.no_grad()
    def confine(self) -> None:
        """Bring the positions back that a step of the optimizer has taken too far."""
        self.position.clamp_(self.lowest, self.highest)  # type: ignore[arg-type]

    def levels(self) -> Tensor:
        """The integers."""
        return self._rounded(self.position.detach()).to(torch.int8)

    def qparams(self) -> QParams:
        """With the learned scale."""
        return replace(self._first, scale=self.scale.detach().clone())

    def _rounded(self, position: Tensor) -> Tensor:
        return position.round().clamp(self._first.quant_min, self._first.quant_max)


def where_weight_is(weight: Tensor, layer: LayerParameters) -> Tensor:
    """Start at the float weight, or as near as the chosen rounding allows: it is to be learned, from there on."""
    levels = layer.levels.to(weight.dtype)
    return torch.clamp(weight / per_channel(layer.qparams.scale, weight), levels - _WITHIN, levels + _WITHIN)


def where_rounded(weight: Tensor, layer: LayerParameters) -> Tensor:
    """Start in the middle of the chosen steps: a weight beside a threshold would be thrown over it by noise."""
    return layer.levels.to(weight.dtype, memory_format=torch.preserve_format)


Start = Callable[[Tensor, LayerParameters], Tensor]


class LearnedActivation(nn.Module):
    """Fake quantization of one tensor with a learned scale (LSQ, Esser et al., ICLR 2020).

    In training every element is quantized with probability 1 - drop, else left as it is (QDrop, Wei et al., ICLR 2022).
    limit: value that the range must not exceed, where a ReLU6 is left to saturation.
    """

    def __init__(self, qparams: QParams, drop: float, limit: float = math.inf) -> None:
        super().__init__()
        self._first, self._drop = qparams, drop
        zero_point = int(qparams.zero_point)
        self._ends = float(qparams.quant_min - zero_point), float(qparams.quant_max - zero_point)
        steps_above_zero = qparams.quant_max - zero_point
        self._most = limit / steps_above_zero if steps_above_zero else math.inf
        self.stretch = nn.Parameter(torch.zeros_like(qparams.scale))

    @property
    def scale(self) -> Tensor:
        """The learned scale; its logarithm is learned, so that a step is relative."""
        return (self._first.scale * self.stretch.exp()).clamp(max=self._most)

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, or in part."""
        quantized: Tensor = _LearnedStep.apply(x, self.scale, *self._ends, self._drop if self.training else 0.0)
        return quantized

    def qparams(self) -> QParams:
        """With the learned scale."""
        return replace(self._first, scale=self.scale.detach().clone())


def random_mask(like: Tensor, share: float) -> Tensor:
    """1 in this share of the elements (to 1/256) and 0 in the others, in the type, place and memory order of `like`,
    from torch's generator. A random number serves eight elements."""
    words = torch.empty(like.numel() // 8 + 1, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    mask = torch.empty_like(like)
    row = mask.as_strided((mask.numel(),), (1,))
    torch.lt(words.view(torch.uint8)[: like.numel()], round(256 * share), out=row)
    return mask


def exchanged(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The first tensor with a random share of its elements taken from the second."""
    return torch.lerp(first, second, random_mask(first, share)) if share else first


class _LearnedStep(torch.autograd.Function):
    """scale * clip(round(x / scale), low, high), or x in a random share of the elements.

    The gradient passes through the rounding and stops at the clip. d/dscale = round(x / scale) - x / scale inside, low
    or high outside, and 0 where x stays. Everything in place, and masks as numbers: on a CPU a choice between tensors
    takes ten times as long as a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, drop: float) -> Tensor:
        position = x / scale
        levels = position.clamp(low, high)
        passed = torch.eq(position, levels, out=torch.empty_like(levels))
        levels.round_()
        slope = torch.sub(levels, position.mul_(passed), out=position)
        quantized = levels.mul_(scale)
        if drop:
            kept = random_mask(x, 1 - drop)
            slope.mul_(kept)
            passed.sub_(1).mul_(kept).add_(1)
            torch.lerp(x, quantized, kept, out=quantized)
        ctx.save_for_backward(passed, slope)
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        passed, slope = ctx.saved_tensors
        return gradient * passed, torch.sum(gradient * slope, dtype=torch.float32), None, None, None


class LearnedBias(nn.Module):
    """Bias of one layer: first bias + spread * shift, with the shift learned; spread is the biases' own, so that a
    step is relative."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", bias.clone())
        self._spread = float(bias.square().mean().sqrt())
        self.shift = nn.Parameter(torch.zeros_like(bias))

    def forward(self) -> Tensor:
        """The bias to add."""
        first: Tensor = self.first  # type: ignore[assignment]
        return first + self._spread * self.shift


def confine_weights(module: nn.Module) -> None:
    """`LearnedWeight.confine` in (a part of) a network, after a step of its optimizer."""
    for weight in module.modules():
        if isinstance(weight, LearnedWeight):
            weight.confine()


def learning_optimizer(module: nn.Module, rates: Rates) -> torch.optim.Optimizer:
    """Adam over everything that is learned in (a part of) a network; `anneal` sets its rates.

    On CUDA its numbers are tensors there, so that its step can be recorded (`Replayed`).
    """
    named = list(module.named_parameters())
    recorded = device_of(module).type == CUDA
    groups = [
        {"params": [value for path, value in named if path.rpartition(".")[2] == name], "rate": rate}
        for name, rate in (("position", rates.weight), ("stretch", rates.scale), ("shift", rates.bias))
    ]
    for group in groups:
        group["lr"] = torch.zeros((), device=device_of(module)) if recorded else 0.0
    return torch.optim.Adam([group for group in groups if group["params"]], fused=recorded, capturable=recorded)


def anneal(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Let the steps shrink along half a cosine; progress from 0 to 1."""
    for group in optimizer.param_groups:
        rate = group["rate"] * (1 + math.cos(math.pi * progress)) / 2
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
