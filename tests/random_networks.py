"""Random small networks: a plan that hypothesis can draw and shrink, and the module it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig
from tests.networks import randomize

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}
HEADS = ("none", "conv", "mean", "adaptive", "flatten", "two-layers")


@dataclass(frozen=True)
class Conv:
    """A convolution; with a norm behind it or not. Groups are as many as divide both channels, up to `groups`."""

    channels: int = 4
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    norm: bool = True
    activation: str = "relu"

    def build(self, channels: int) -> nn.Sequential:
        groups = max(n for n in range(1, self.groups + 1) if channels % n == 0 and self.channels % n == 0)
        conv = nn.Conv2d(
            channels,
            self.channels,
            self.kernel,
            stride=self.stride,
            padding=self.padding + self.dilation * (self.kernel - 1),  # never smaller than one pixel
            dilation=self.dilation,
            groups=groups,
            bias=self.bias,
        )
        norm = nn.BatchNorm2d(self.channels) if self.norm else nn.Identity()
        return nn.Sequential(conv, norm, ACTIVATIONS[self.activation]())


@dataclass(frozen=True)
class Depthwise:
    """A 3x3 convolution of every channel by itself."""

    stride: int = 1
    activation: str = "relu6"


@dataclass(frozen=True)
class Residual:
    """x + conv(x), or x * conv(x), then an activation."""

    kernel: int = 1
    product: bool = False
    activation: str = "relu"
    after: str = "none"


@dataclass(frozen=True)
class Join:
    """Two convolutions of one tensor, concatenated or added; the first may be read raw besides."""

    left: int = 2
    right: int = 2
    concat: bool = True
    activations: tuple[str, str] = ("relu", "none")
    keeps_input: bool = False


@dataclass(frozen=True)
class Shared:
    """One convolution with its norm, called so many times."""

    times: int = 2
    activation: str = "relu"


@dataclass(frozen=True)
class Pool:
    """Pooling, where there are enough pixels."""

    maximum: bool = True
    kernel: int = 2
    stride: int = 2


@dataclass(frozen=True)
class Norm:
    """BatchNorm by itself."""

    activation: str = "relu"


@dataclass(frozen=True)
class Plan:
    """Everything about a random network and how it is quantized."""

    shape: tuple[int, int, int] = (1, 1, 1)
    steps: tuple[Any, ...] = (Conv(),)
    head: str = "none"
    seed: int = 0
    bits: tuple[int, int] = (8, 8)
    budget: str | None = None
    learns: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> QuantizationConfig:
        """Mixed bits where there is a budget."""
        weights, activations = self.bits
        plain = {"bits": f"W{weights}A{activations}"}
        widths = plain if self.budget is None else {"bits": "mixed", "budget": self.budget}
        return QuantizationConfig(**widths, **dict(self.options))

    def network(self) -> nn.Module:
        """The module, with random weights and statistics."""
        return randomize(_Network(self), self.seed)


class _Network(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        channels, height, width = plan.shape
        x = torch.zeros(1, channels, height, width)
        parts: list[nn.Module] = []
        for step in plan.steps:
            parts.append(_Step(step, x.shape[1]))
            with torch.no_grad():
                x = parts[-1].eval()(x)
        self.parts = nn.Sequential(*parts)
        self.head = _Head(plan.head, x.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(x))


class _Step(nn.Module):
    """One step of a plan on a tensor of so many channels."""

    def __init__(self, step: Any, channels: int) -> None:
        super().__init__()
        self.step = step
        self.act = ACTIVATIONS[getattr(step, "activation", "none")]()
        same = Conv(channels=channels, kernel=getattr(step, "kernel", 1), activation="none")
        match step:
            case Conv():
                self.conv = step.build(channels)
            case Depthwise():
                conv = nn.Conv2d(channels, channels, 3, padding=1, stride=step.stride, groups=channels, bias=False)
                self.conv = nn.Sequential(conv, nn.BatchNorm2d(channels), self.act)
            case Residual():
                conv = nn.Conv2d(channels, channels, 2 * step.kernel - 1, padding=step.kernel - 1, bias=False)
                self.conv = nn.Sequential(conv, nn.BatchNorm2d(channels), ACTIVATIONS[step.after]())
            case Join():
                right = step.right if step.concat else step.left
                self.conv = Conv(channels=step.left, activation=step.activations[0]).build(channels)
                self.other = Conv(channels=right, activation=step.activations[1]).build(channels)
            case Shared():
                self.conv = same.build(channels)
            case Norm():
                self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        step = self.step
        match step:
            case Conv() | Depthwise():
                return self.conv(x)
            case Residual():
                return self.act(x * self.conv(x) if step.product else x + self.conv(x))
            case Join():
                left, right = self.conv(x), self.other(x)
                joined = torch.cat([left, right], 1) if step.concat else left + right
                return torch.cat([x, joined], 1) if step.keeps_input else joined
            case Shared():
                for _ in range(step.times):
                    x = self.act(self.conv(x))
                return x
            case Norm():
                return self.act(self.norm(x))
        if min(x.shape[2:]) < step.kernel:
            return x
        pool = F.max_pool2d if step.maximum else F.avg_pool2d
        return pool(x, step.kernel, step.stride)


class _Head(nn.Module):
    def __init__(self, head: str, shape: torch.Size) -> None:
        super().__init__()
        self.kind = head
        if head == "conv":
            self.layer = nn.Conv2d(shape[1], 3, 1)
        elif head != "none":
            features = shape[1:].numel() if head == "flatten" else shape[1]
            self.layer = nn.Linear(features, 5 if head == "two-layers" else 3)
            self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("none", "conv"):
            return self.layer(x) if self.kind == "conv" else x
        if self.kind == "flatten":
            return self.layer(x.flatten(1))
        x = x.mean((2, 3)) if self.kind == "mean" else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.last(F.relu(self.layer(x))) if self.kind == "two-layers" else self.layer(x)


_channels, _activations = st.integers(1, 8), st.sampled_from(tuple(ACTIVATIONS))
_clips = st.sampled_from(("none", "relu", "relu6"))
_convs = st.builds(
    Conv,
    channels=_channels,
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 8),
    bias=st.booleans(),
    norm=st.booleans(),
    activation=_activations,
)
_steps = st.one_of(
    _convs,
    st.builds(Depthwise, stride=st.integers(1, 2), activation=_clips),
    st.builds(Residual, kernel=st.integers(1, 2), product=st.booleans(), activation=_clips, after=_clips),
    st.builds(
        Join,
        left=_channels,
        right=_channels,
        concat=st.booleans(),
        activations=st.tuples(_clips, _clips),
        keeps_input=st.booleans(),
    ),
    st.builds(Shared, times=st.integers(1, 2), activation=_clips),
    st.builds(Pool, maximum=st.booleans(), kernel=st.integers(2, 3), stride=st.integers(1, 2)),
    st.builds(Norm, activation=_activations),
)
_first = st.builds(
    Conv, channels=_channels, kernel=st.integers(1, 3), stride=st.integers(1, 2), activation=_activations
)
_options = st.fixed_dictionaries(
    {},
    optional={
        "first_last_bits": st.sampled_from((2, 8)),
        "other_bits": st.integers(2, 8),
        "equalize": st.sampled_from(("auto", "none", "weights", "activations")),
        "weight_rounding": st.sampled_from(("nearest", "squant")),
        "bias_correction": st.sampled_from(("none", "analytic", "empirical")),
        "activation_ranges": st.sampled_from(("minmax", "percentile", "mse", "lp", "sigma")),
        "weight_ranges": st.sampled_from(("minmax", "mse", "lp")),
        "absorb_biases": st.booleans(),
        "reduce_range": st.just(True),
    },
).map(lambda options: tuple(sorted(options.items())))

plans = st.builds(
    Plan,
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    steps=st.tuples(_first, st.lists(_steps, max_size=5)).map(lambda parts: (parts[0], *parts[1])),
    head=st.sampled_from(HEADS),
    seed=st.integers(0, 2**16),
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    budget=st.sampled_from((None, None, None, "bits=5", "size=0.8x", "bops=0.7x")),
    learns=st.sampled_from((False, False, True)),
    options=_options,
)
