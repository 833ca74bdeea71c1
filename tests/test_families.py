"""Families of networks, each from a module to a verified file, with what is left in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.config import SynthesisConfig
from dffg.pipeline.steps import quantize
from dffg.spec import ImageSpec
from tests.networks import randomize


class Squeeze(nn.Module):
    """Squeeze and excitation, with hard sigmoid as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Recurrent(nn.Module):
    """Convolutions over time, then an LSTM whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.body(x).transpose(1, 2))[0][:, -1])


class Pyramid(nn.Module):
    """A detector's neck and heads: maps of two sizes, joined by upsampling, each with scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.scores, self.boxes = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        large = self.stem(x)
        small = self.deep(large)
        maps = [large + F.interpolate(small, scale_factor=2.0, mode="nearest"), small]
        return {"scores": [self.scores(m) for m in maps], "boxes": [self.boxes(m).flatten(2).mT for m in maps]}


def around(layer: nn.Module, channels: int = 3) -> nn.Module:
    """A layer between two convolutions with BatchNorm, and a classifier."""
    body = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), layer, nn.Conv2d(8, 8, 3, bias=False)]
    return nn.Sequential(*body, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def volumes() -> nn.Module:
    body = [nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 3))


# name -> how to make it, the shape of an input, what of it stays in float, how many layers have integer kernels.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str], int]] = {
    "one-dimensional": (lambda: nn.Sequential(Recurrent().body, nn.Flatten(), nn.Linear(64, 3)), (6, 8), set(), 2),
    "three-dimensional": (volumes, (1, 6, 6, 6), set(), 2),
    "Hardswish, 13 channels": (lambda: around(nn.Hardswish(), 13), (13, 8, 8), {"hardswish"}, 3),
    "SiLU, 4 channels": (lambda: around(nn.SiLU(), 4), (4, 8, 8), {"silu"}, 3),
    "GELU": (lambda: around(nn.GELU()), (3, 8, 8), {"gelu"}, 3),
    "dilated and grouped": (lambda: around(nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)), (3, 8, 8), set(), 4),
    "squeeze and excitation": (lambda: around(Squeeze()), (3, 8, 8), {"hardsigmoid"}, 5),
    "PReLU": (lambda: around(nn.PReLU(8)), (3, 8, 8), {"prelu"}, 3),
    "transposed convolution": (
        lambda: around(nn.ConvTranspose2d(8, 8, 2, stride=2)),
        (3, 8, 8),
        {"conv_transpose2d"},
        3,
    ),
    "transposed convolution without bias": (
        lambda: around(nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False)),
        (3, 8, 8),
        {"conv_transpose2d"},
        3,
    ),
    "group normalization": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
        (3, 8, 8),
        {"group_norm"},
        2,
    ),
    "LSTM behind convolutions": (Recurrent, (6, 8), {"lstm"}, 2),
    "detection": (Pyramid, (3, 16, 16), {"silu", "upsample_nearest2d", "conv2d"}, 4),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_from_module_to_verified_file(family: str, tmp_path: Path) -> None:
    make, shape, in_float, layers = FAMILIES[family]
    torch.manual_seed(0)
    spec, config = ImageSpec(shape=shape), SynthesisConfig(count=16)
    result = quantize(randomize(make()), tmp_path / "out", spec=spec, synthesis=config)
    assert result.verified, result.problems
    assert result.kernels.integer == layers
    found = {operation.rpartition("(")[2].removesuffix(")") for operation in result.float_operations}
    assert in_float <= found
    if not in_float:
        assert not found
