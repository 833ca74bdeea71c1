"""What the tests of the baselines share: one small network, and its BatchNorm inputs read by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from dffg.config import NOISES, SynthesisConfig
from dffg.graph.captured import Captured, capture
from dffg.spec import ImageSpec
from dffg.synthesis.chain import Visit
from tests.networks import BatchNorm, network

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
FEATURES = ImageSpec(shape=(1, 8, 8), bounds=(-3.0, 5.0))


@cache
def pictures() -> tuple[nn.Module, Captured]:
    """A network of two BatchNorms, as a module and captured."""
    model, _ = network("conv")
    return model, capture(model, spec=SPEC)


@cache
def features() -> Captured:
    """The same for inputs of one channel that are not pictures."""
    return capture(network("gray")[0], spec=FEATURES)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The input of one BatchNorm, (batch, channels, ...), and what the BatchNorm remembers."""

    input: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    @property
    def sd(self) -> Tensor:
        return (self.var + self.eps).sqrt()

    def moments(self, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over these axes."""
        return self.input.mean(dims), (self.input.var(dims, correction=0) + self.eps).sqrt()


def look(model: nn.Module, images: Tensor) -> tuple[list[Seen], Tensor]:
    """What every BatchNorm of a plain module is given, and the module's answer."""
    seen: list[Seen] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, BatchNorm)
        seen.append(Seen(input=inputs[0], mean=norm.running_mean, var=norm.running_var, eps=norm.eps))

    hooks = [norm.register_forward_pre_hook(note) for norm in model.modules() if isinstance(norm, BatchNorm)]
    with torch.no_grad():
        answer = model(images)
    for hook in hooks:
        hook.remove()
    return seen, answer


def images(count: int = 4, seed: int = 0, spec: ImageSpec = SPEC) -> Tensor:
    """Standard normal network input."""
    return torch.randn(count, *spec.shape, generator=torch.Generator().manual_seed(seed))


def config(generator: str, **options: object) -> SynthesisConfig:
    """A short run of small batches."""
    short = {} if generator in NOISES else {"steps": 12}
    return SynthesisConfig(**{"generator": generator, "count": 4, "batch_size": 4, **short, **options})


def losses(visits: Iterator[Visit]) -> list[float]:
    """Losses along a chain."""
    return [visit.loss for visit in visits]


def legal(made: Tensor, spec: ImageSpec) -> bool:
    """Whether network inputs keep to the legal pixels, but for rounding."""
    low, high = (torch.from_numpy(bound) for bound in spec.input_bounds())
    return bool((made >= low - 1e-5).all() and (made <= high + 1e-5).all())
