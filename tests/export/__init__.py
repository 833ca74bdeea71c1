"""Small networks, each with one arrangement beside its integer kernels, exported once per session."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.export.onnx import write_quantized
from dffg.graph.captured import capture
from dffg.quant.decide import simulate
from dffg.quant.quantized import Quantized
from dffg.spec import ImageSpec
from tests.networks import inputs, randomize

SHAPE = (3, 8, 8)
SPEC = ImageSpec(shape=SHAPE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), source="the tests")


def layer(channels: int, out: int, **options: object) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    options = {"kernel_size": 3, "padding": 1, **options}
    return nn.Sequential(nn.Conv2d(channels, out, bias=False, **options), nn.BatchNorm2d(out), nn.ReLU())


class Body(nn.Module):
    """A stem, something in the middle, and a head on what it gives."""

    def __init__(self, middle: Callable[[Body, Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem = layer(3, 8)
        self.left, self.right = layer(8, 8), layer(8, 8)
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.strided = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(channels, 5)
        self.hidden = nn.Linear(channels, 12)
        self.last = nn.Linear(12, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, self.stem(x))


def mean_head(body: Body, x: Tensor) -> Tensor:
    return body.head(x.mean((2, 3)))


def adaptive_head(body: Body, x: Tensor) -> Tensor:
    return body.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def two_layers(body: Body, x: Tensor) -> Tensor:
    return body.last(F.relu(body.hidden(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))))


MIDDLES: dict[str, Callable[[], Body]] = {
    "plain": lambda: Body(mean_head),
    "residual": lambda: Body(lambda body, x: mean_head(body, body.left(x) + x)),
    "depthwise": lambda: Body(lambda body, x: adaptive_head(body, body.depthwise(x))),
    "concat": lambda: Body(lambda body, x: adaptive_head(body, torch.cat([body.left(x), body.right(x)], 1)), 16),
    "padded": lambda: Body(lambda body, x: mean_head(body, body.strided(F.pad(x, (0, 1, 0, 1))))),
    "average-pool": lambda: Body(lambda body, x: mean_head(body, body.left(F.avg_pool2d(x, 2)))),
    "global-mean": lambda: Body(lambda body, x: mean_head(body, body.left(x))),
    "global-adaptive": lambda: Body(lambda body, x: adaptive_head(body, body.left(x))),
    "max-pool": lambda: Body(lambda body, x: mean_head(body, body.left(F.max_pool2d(x, 2)))),
    "two-layer-head": lambda: Body(two_layers),
}
FLOAT_OPERATIONS: dict[str, Callable[[], Body]] = {
    "hardswish": lambda: Body(lambda body, x: mean_head(body, body.left(F.hardswish(x - 1)))),
    "batch-norm": lambda: Body(lambda body, x: mean_head(body, body.left(body.norm(x)))),
}


@dataclass(frozen=True)
class Exported:
    """A network of this file in every form."""

    model: nn.Module
    quantized: Quantized
    path: Path


@cache
def folder() -> Path:
    """Removed when the tests end."""
    made = Path(tempfile.mkdtemp(prefix="dffg-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def normalized(count: int, seed: int = 0) -> Tensor:
    """Network inputs: random pixels, normalized."""
    return torch.from_numpy(SPEC.normalize(inputs(SHAPE, count, seed).numpy()))


@cache
def exported(name: str) -> Exported:
    """A network of this file, quantized and written; nobody changes it."""
    model = randomize((MIDDLES | FLOAT_OPERATIONS)[name](), seed=len(name))
    captured = capture(model, spec=SPEC, name=name)
    quantized = simulate(captured, [normalized(16), normalized(16, seed=1)])
    path = folder() / f"{name}.onnx"
    write_quantized(quantized, SPEC, path)
    return Exported(model, quantized, path)
