"""What people use today where they have no data. No pass through the network is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.spec import ImageSpec
from dffg.synthesis.chain import Visit, chain_generator

Draw = Callable[[tuple[int, ...], ImageSpec, torch.Generator], Tensor]


def normal(shape: tuple[int, ...], spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """N(0, 1) network input, whatever the legal pixels are."""
    return torch.randn(shape, generator=generator)


def uniform(shape: tuple[int, ...], spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """Uniform over the legal pixels."""
    low, high = input_bounds(spec)
    return low + (high - low) * torch.rand(shape, generator=generator)


def ones(shape: tuple[int, ...], spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """A network input of all ones, the dummy input of some tools."""
    return torch.ones(shape)


def unnormalized(shape: tuple[int, ...], spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """Uniform network input in [0, 1), without normalization: what SQuant's code feeds (Guo et al., ICLR 2022).

    Its other half, the range [0, k * std] of every activation, is not a matter of images: it is the activation range
    `sigma`, which this generator is meant to be combined with.
    """
    return torch.rand(shape, generator=generator)


def noise_chain(draw: Draw) -> Callable[[Captured, SynthesisConfig, int], Iterator[Visit]]:
    """A chain of one visit, without a loss."""

    def run(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
        images = draw((config.batch_size, *captured.spec.shape), captured.spec, chain_generator(config.seed, chain))
        yield Visit(images=images, step=0, loss=None)

    return run
