"""Diversity by manipulating the variability of the gradient: interchangeable ways to get the gradient of a step.

The abstract of DFFG (Leng et al., BMVC 2023) says that diversity comes from "manipulating the variability of the
gradients" and no more. Each function here is one reading. All have the same form: they are given a way to evaluate
loss and gradient, the images, the variance carried over from the last step, randomness and the options; they return
loss, gradient and the variance to carry on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Transform = Callable[[Tensor], Tensor]


class GradientAt(Protocol):
    """Loss and gradient with respect to the images, seen through an optional differentiable transform."""

    def __call__(self, images: Tensor, transform: Transform | None = None) -> tuple[float, Tensor]:
        """Loss of the batch, and its gradient with respect to `images`."""
        ...


@dataclass(frozen=True, kw_only=True)
class VariabilityOptions:
    """What the methods may use.

    strength: 0 to 1, per method; samples: extra gradients of variance tuning; pixel_width: (channels, ...) width of the
    bounds in input units; are_pictures: whether moving and mirroring makes sense; generator: all randomness.
    """

    strength: float
    samples: int
    pixel_width: Tensor
    are_pictures: bool
    generator: torch.Generator


Variability = Callable[[GradientAt, Tensor, Tensor, VariabilityOptions], tuple[float, Tensor, Tensor]]


def none(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """The gradient as it is."""
    loss, gradient = gradient_at(images)
    return loss, gradient, variance


def variance_tuning(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Add the variance of the gradient in the neighbourhood, measured one step ago.

        g' = g + v,    v <- mean_i grad(images + r_i) - g,    r_i uniform within +- strength * width of the bounds / 4

    Source: VMI-FGSM (Wang and He, CVPR 2021), whose neighbourhood is 1.5 times the 16/255 attack radius (about 0.1 of
    the range; strength 0.4 here) with 20 samples. Costs `samples` more passes a step.
    """
    loss, gradient = gradient_at(images)
    radius = options.strength * options.pixel_width / 4
    total = torch.zeros_like(gradient)
    for _ in range(options.samples):
        total += gradient_at(images + radius * (2 * _uniform(images.shape, options) - 1))[1]
    return loss, gradient + variance, total / options.samples - gradient


def random_mask(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Hide a random part of the gradient, another one for every image and step; `strength` is the share hidden.

    Images of a batch share one loss on their joint statistics and would be pushed in concert; with masks each follows
    its own part of the way. Costs nothing.
    """
    loss, gradient = gradient_at(images)
    return loss, gradient * (_uniform(gradient.shape, options) >= options.strength), variance


def random_scale(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Scale every pixel's gradient by a factor uniform in [1 - strength, 1 + strength]. Costs nothing.

    One factor per image would be undone by the normalisation of `momentum_sign_step`.
    """
    loss, gradient = gradient_at(images)
    return loss, gradient * (1 + options.strength * (2 * _uniform(gradient.shape, options) - 1)), variance


def input_diversity(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Take the gradient through a random view of the images: flipped, rolled, shrunk and padded.

    With probability `strength` each. Source: DI-FGSM (Xie et al., CVPR 2019) for shrink and pad; DeepInversion (Yin et
    al., CVPR 2020) for flip and roll. Only pictures are moved: a mirrored spectrogram is another sound. For other
    inputs this is `none`.
    """
    loss, gradient = gradient_at(images, _random_view(images, options))
    return loss, gradient, variance


def _random_view(images: Tensor, options: VariabilityOptions) -> Transform:
    if not options.are_pictures:
        return lambda batch: batch
    height, width = images.shape[-2:]
    flip, roll, shrink = (_uniform((3,), options) < options.strength).tolist()
    down, right = (int((2 * u - 1) * size / 8) for u, size in zip(_uniform((2,), options).tolist(), (height, width)))
    scale = 0.9 + 0.1 * float(_uniform((1,), options))

    def view(batch: Tensor) -> Tensor:
        if flip:
            batch = batch.flip(-1)
        if roll:
            batch = batch.roll((down, right), (-2, -1))
        return _shrink_and_pad(batch, scale) if shrink else batch

    return view


def _shrink_and_pad(batch: Tensor, scale: float) -> Tensor:
    height, width = batch.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = F.interpolate(batch, size=size, mode="nearest")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return F.pad(small, (left, width - size[1] - left, top, height - size[0] - top))


def _uniform(shape: tuple[int, ...] | torch.Size, options: VariabilityOptions) -> Tensor:
    return torch.rand(shape, generator=options.generator)


VARIABILITIES: dict[str, Variability] = {
    "none": none,
    "variance-tuning": variance_tuning,
    "random-mask": random_mask,
    "random-scale": random_scale,
    "input-diversity": input_diversity,
}
