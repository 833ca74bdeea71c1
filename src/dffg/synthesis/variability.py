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
    bounds in input units, where the images lie; are_pictures: whether moving and mirroring makes sense; generator: all
    randomness, drawn on the CPU, so that it is the same for every device.
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
    """Add the variance of the gradient in the neighborhood, measured one step ago.

        g' = g + v,    v <- mean_i grad(images + r_i) - g,    r_i uniform within +- strength * width of the bounds / 4

    Source: VMI-FGSM (Wang and He, CVPR 2021), whose neighborhood is 1.5 times the 16/255 attack radius (about 0.1 of
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

    One factor per image would be undone by the normalization of `momentum_sign_step`.
    """
    loss, gradient = gradient_at(images)
    return loss, gradient * (1 + options.strength * (2 * _uniform(gradient.shape, options) - 1)), variance


def input_diversity(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Take the gradient through a random view of every image: flipped, rolled, shrunk and padded.

    With probability `strength` each, drawn anew for every image and step. Source: DI-FGSM (Xie et al., CVPR 2019) for
    shrink and pad; DeepInversion (Yin et al., CVPR 2020) for flip and roll. Only pictures are moved: a mirrored
    spectrogram is another sound. For other inputs this is `none`.
    """
    if not options.are_pictures:
        return none(gradient_at, images, variance, options)
    loss, gradient = gradient_at(images, random_view(images, options))
    return loss, gradient, variance


def random_view(images: Tensor, options: VariabilityOptions) -> Transform:
    """A transform that shows every image of a batch flipped, rolled by up to 1/8, and shrunk by up to 1/10."""
    count, (height, width) = len(images), images.shape[-2:]
    flip, roll, shrink = _uniform((3, count), options) < options.strength
    down, right = (2 * _uniform((2, count), options) - 1) * roll
    scale = torch.where(shrink, 0.9 + 0.1 * _uniform((count,), options), 1.0)
    rows = _source_pixels(height, scale, (down * height / 8).long(), torch.zeros_like(flip))
    columns = _source_pixels(width, scale, (right * width / 8).long(), flip)
    return lambda batch: _look_up(batch, rows, columns)


def _source_pixels(size: int, scale: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Source position of each of `size` positions along one axis, -1 for padding: (count, size)."""
    shown = (size * scale).round().clamp(min=1)[:, None]
    place = torch.arange(size, device=scale.device) - ((size - shown) / 2).floor()
    source = ((place + 0.5) * size / shown).floor().long()
    wrapped = (source - shift[:, None]) % size
    mirrored = torch.where(flip[:, None], size - 1 - wrapped, wrapped)
    return torch.where((place >= 0) & (place < shown), mirrored, -1)


def _look_up(batch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Every image at its own rows and columns; 0 where either is padding."""
    width = batch.shape[-1]
    source = (rows.clamp(min=0)[:, :, None] * width + columns.clamp(min=0)[:, None, :]).flatten(1)
    visible = (rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
    moved = batch.flatten(2).gather(2, source[:, None].expand(-1, batch.shape[1], -1))
    return moved.reshape(batch.shape) * visible[:, None]


def _uniform(shape: tuple[int, ...] | torch.Size, options: VariabilityOptions) -> Tensor:
    return torch.rand(shape, generator=options.generator).to(options.pixel_width.device)


VARIABILITIES: dict[str, Variability] = {
    "none": none,
    "variance-tuning": variance_tuning,
    "random-mask": random_mask,
    "random-scale": random_scale,
    "input-diversity": input_diversity,
}
