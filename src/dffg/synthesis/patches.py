"""What to walk to where there is no BatchNorm: images whose patches differ as those of real images do. Experimental.

A vision transformer tells things from background by its patches: in a real image some are alike and some are not, in
noise all are alike. For every attention, cosine similarities between its patches are taken,

    S_ij = <u_i, u_j> / (|u_i| |u_j|),       f(t) = mean_ij N(t; S_ij, h^2),       H = - integral f log f dt

and the entropy H of their kernel density estimate is maximized. Beside it, every image has a class that the network
shall see in it, and pictures must not be rougher than real ones. Source: PSAQ-ViT (Li et al., ECCV 2022), equations 5
to 11, whose Adam is replaced by the same momentum sign steps as everywhere. Ours: h, the fixed grid on [-1, 1], the
weights, means in place of sums, at most 64 patches of a map, classes spread over the batch, a bound on roughness in
place of a random target. Without attention, positions of what normalization layers read take the place of patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dffg.bounds import input_bounds
from dffg.graph.nodes import with_output
from dffg.graph.patches import compared, patch_sources
from dffg.spec import ImageSpec

BANDWIDTH = 0.05
CLASS_WEIGHT = 0.1
ROUGHNESS_WEIGHT = 10.0
# Root mean square between neighboring pixels, as a share of the range: PSAQ-ViT's 2500 to 3000 for a batch of 32.
ROUGHEST = 0.07
_MOST_PATCHES = 64
_GRID = 65


class PatchObjective:
    """Loss of a batch of network inputs: least where patches are as diverse as in real images."""

    def __init__(self, module: fx.GraphModule, spec: ImageSpec) -> None:
        answer: fx.Node = module.graph.output_node().args[0]  # type: ignore[assignment]
        sources = patch_sources(module)
        self._targets = [compared(source) for source in sources]
        self._network = with_output(module, [*(node for node, _ in self._targets), answer])
        self._spec = spec

    def __call__(self, images: Tensor) -> Tensor:
        """The loss; differentiable."""
        *results, answer = self._network(images)
        patches = [as_patches(result, kind) for result, (_, kind) in zip(results, self._targets, strict=True)]
        loss = -torch.stack([entropy(similarities(found)).mean() for found in patches]).mean()
        if answer.dim() == 2 and answer.shape[1] > 1:
            loss = loss + CLASS_WEIGHT * F.cross_entropy(answer, spread_classes(*answer.shape).to(answer.device))
        if self._spec.is_pixels:
            loss = loss + ROUGHNESS_WEIGHT * F.relu(roughness(images, self._spec) - ROUGHEST).mean()
        return loss


def as_patches(result: Tensor, kind: str) -> Tensor:
    """(batch, patches, features) of an attention, or of what a normalization reads; at most 64, evenly spaced."""
    if kind == "attention":
        patches = result.transpose(1, 2).flatten(2) if result.dim() == 4 else result
    elif kind == "channels first":
        patches = result.flatten(2).transpose(1, 2)
    else:
        patches = result.flatten(1, -2)
    count = patches.shape[1]
    return patches[:, torch.linspace(0, count - 1, min(count, _MOST_PATCHES), device=patches.device).long()]


def similarities(patches: Tensor) -> Tensor:
    """Cosines between all patches of each image: (batch, patches, features) -> (batch, patches^2)."""
    unit = F.normalize(patches, dim=2, eps=1e-6)
    return (unit @ unit.transpose(1, 2)).flatten(1)


def entropy(values: Tensor) -> Tensor:
    """Differential entropy of values in [-1, 1] by a normal kernel density estimate: (batch, values) -> (batch,)."""
    reach = 1 + 4 * BANDWIDTH
    grid = torch.linspace(-reach, reach, _GRID, device=values.device)
    distance = (grid[:, None] - values[:, None]) / BANDWIDTH
    density = torch.exp(-0.5 * distance.square()).mean(2) / (BANDWIDTH * math.sqrt(2 * math.pi))
    return -(torch.xlogy(density, density.clamp(min=1e-12))).sum(1) * (grid[1] - grid[0])


def spread_classes(count: int, classes: int) -> Tensor:
    """Another class for every image of a batch, as far as there are so many."""
    return torch.arange(count) * classes // count if count < classes else torch.arange(count) % classes


def roughness(images: Tensor, spec: ImageSpec) -> Tensor:
    """Root mean square difference between neighboring pixels of every picture, as a share of their range: (batch,)."""
    low, high = input_bounds(spec, images.device)
    pixels = (images - low) / (high - low)
    differences = [pixels.diff(dim=dim).square().mean((1, 2, 3)) for dim in (2, 3) if pixels.shape[dim] > 1]
    return (torch.stack(differences or [images.new_zeros(len(images))]).mean(0) + 1e-12).sqrt()
