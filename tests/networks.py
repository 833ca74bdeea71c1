"""Small real networks shared by the tests, with BatchNorms that remember something."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.graph.captured import Captured, capture
from dffg.spec import ImageSpec

BatchNorm = nn.modules.batchnorm._BatchNorm


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights and give every BatchNorm statistics and an affine part that are not 0 and 1; return eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                _randomize_batch_norm(module, generator)
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return model.eval()


def _randomize_batch_norm(module: BatchNorm, generator: torch.Generator) -> None:
    channels = module.num_features
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.copy_(0.3 * torch.randn(channels, generator=generator))
        module.running_var.copy_(0.5 + torch.rand(channels, generator=generator))
    if module.affine:
        module.weight.copy_(0.5 + torch.rand(channels, generator=generator))
        module.bias.copy_(0.3 * torch.randn(channels, generator=generator))


def small_conv(channels: int = 3, classes: int = 5) -> nn.Sequential:
    """Convolutions with BatchNorm and ReLU, pooling and a classifier."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes),
    )


class Residual(nn.Module):
    """A residual block; `inplace` writes the ReLUs as `relu_`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_bn(self.stem(x)))
        x = self.relu(self.bn(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with ReLU6 and a linear bottleneck, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


class PreActivation(nn.Module):
    """BatchNorm and ReLU before the convolution; the first BatchNorm reads the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.first(x)))
        return self.head(F.relu(self.second(x))).mean((2, 3))


def linear_norm() -> nn.Sequential:
    """BatchNorm1d after a linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class SequenceNorm(nn.Module):
    """BatchNorm1d over (batch, steps, features) from a linear layer: its channels are the steps, not the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x.flatten(2).transpose(1, 2)))


def volumes() -> nn.Sequential:
    """A three-dimensional convolution with BatchNorm3d."""
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


class Functional(nn.Module):
    """`F.batch_norm` on buffers, without an affine part and with an eps of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.register_buffer("seen_mean", torch.linspace(-0.5, 0.5, 6))
        self.register_buffer("seen_var", torch.linspace(0.5, 1.5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(self.conv(x), self.seen_mean, self.seen_var, eps=1e-3)).mean((2, 3))


class Shared(nn.Module):
    """One convolution and one BatchNorm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(self.bn(self.conv(x)))))


class AfterConcat(nn.Module):
    """BatchNorm of two branches joined, and of a convolution that is also read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(8)
        self.right_bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        joined = F.relu(self.bn(torch.cat([self.left(x), right], 1)))
        return torch.cat([joined, self.right_bn(right)], 1)


def after_pool() -> nn.Sequential:
    """BatchNorm of a pooled convolution."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))


class DeadChannels(nn.Module):
    """A convolution with two channels of zero weights, which live from the BatchNorm's bias alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))))


def dead_channels() -> nn.Module:
    """`DeadChannels` with channels 0 and 3 dead: zero weights and variance, bias 1.5 and 0.7."""
    model = randomize(DeadChannels())
    assert isinstance(model, DeadChannels)
    with torch.no_grad():
        for channel, bias in ((0, 1.5), (3, 0.7)):
            model.conv.weight[channel] = 0
            model.bn.running_mean[channel] = 0
            model.bn.running_var[channel] = 0
            model.bn.bias[channel] = bias
    return model


Shape = tuple[int, ...]

# name -> how to make it, the shape of one example, the names of its BatchNorms in order, how many of them fold.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape, tuple[str, ...], int]] = {
    "conv": (small_conv, (3, 8, 8), ("1", "4"), 2),
    "gray": (lambda: small_conv(1), (1, 8, 8), ("1", "4"), 2),
    "four-channels": (lambda: small_conv(4), (4, 8, 8), ("1", "4"), 2),
    "not-square": (small_conv, (3, 6, 10), ("1", "4"), 2),
    "residual": (Residual, (3, 8, 8), ("stem_bn", "bn"), 2),
    "residual-inplace": (lambda: Residual(inplace=True), (3, 8, 8), ("stem_bn", "bn"), 2),
    "inverted-residual": (InvertedResidual, (3, 8, 8), ("stem.1", "block.1", "block.4", "block.7"), 4),
    "pre-activation": (PreActivation, (3, 8, 8), ("first", "second"), 1),
    "linear": (linear_norm, (1, 8, 8), ("2",), 1),
    "sequence": (SequenceNorm, (8, 2, 4), ("bn",), 0),
    "volumes": (volumes, (1, 4, 4, 4), ("1",), 1),
    "functional": (Functional, (3, 8, 8), ("batch_norm",), 1),
    "shared": (Shared, (3, 6, 6), ("bn", "bn"), 2),
    "after-concat": (AfterConcat, (3, 6, 6), ("bn", "right_bn"), 0),
    "after-pool": (after_pool, (3, 8, 8), ("2",), 0),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Shape]:
    """A network by name, randomized and in eval mode, with the shape of one example."""
    make, shape, *_ = NETWORKS[name]
    return randomize(make(), seed), shape


def inputs(shape: Shape, count: int = 4, seed: int = 0) -> Tensor:
    """Inputs in [0, 1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@cache
def captured(name: str) -> Captured:
    """A network of this file, captured once; nothing in the library changes a capture."""
    model, shape = network(name)
    return capture(model, spec=ImageSpec(shape=shape))
