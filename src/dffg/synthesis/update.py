"""The step of the iteration: pure functions of images, gradient and velocity."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from dffg.bounds import Bounds


class Step(Protocol):
    """One update of the images; the form of `momentum_sign_step`."""

    def __call__(
        self,
        images: Tensor,
        gradient: Tensor,
        velocity: Tensor,
        *,
        step_size: Tensor | float,
        decay: float,
        bounds: Bounds,
    ) -> tuple[Tensor, Tensor]:
        """Images and velocity after the update."""
        ...


def momentum_sign_step(
    images: Tensor, gradient: Tensor, velocity: Tensor, *, step_size: Tensor | float, decay: float, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """Take one signed step downhill, in the direction that the past gradients agree on.

        velocity <- decay * velocity + gradient / mean|gradient|        (mean per image)
        images   <- clip(images - step_size * sign(velocity), bounds)

    The gradient is divided by its mean size so that late, small gradients count as much as early ones in the velocity;
    an all-zero gradient is left at zero, which a plain division would turn into NaN for good. The sign is taken of the
    velocity, not of the gradient: the other order is another algorithm.

    images, gradient, velocity: (batch, ...) network inputs; step_size in the same units, broadcastable; decay 0 is
    plain iterative FGSM. Returns new tensors. Source: MI-FGSM (Dong et al., CVPR 2018), which DFFG (Leng et al., BMVC
    2023) uses to make data; it maximises and projects to a ball around a clean image, here we minimise and there is
    none, so the legal pixel range takes its place.

    >>> images, velocity = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    >>> gradient = torch.tensor([[[[1.0, -3.0]]]])
    >>> images, velocity = momentum_sign_step(
    ...     images, gradient, velocity, step_size=0.1, decay=0.9, bounds=(torch.tensor(-1.0), torch.tensor(1.0))
    ... )
    >>> images.flatten().tolist(), velocity.flatten().tolist()
    ([-0.10000000149011612, 0.10000000149011612], [0.5, -1.5])
    """
    size = gradient.abs().flatten(1).mean(1).reshape(-1, *[1] * (gradient.dim() - 1))
    velocity = decay * velocity + gradient / torch.where(size > 0, size, 1.0)
    return torch.clamp(images - step_size * velocity.sign(), *bounds), velocity


def step_size_at(step: int, steps: int, first: float, schedule: str) -> float:
    """Size of update number `step` (from 0) of a chain of `steps`: shrinking along a cosine or a line, or constant.

    No update of size 0 is made: update k of n is at phase k / n of the curve.
    """
    phase = step / steps
    shrink = {"cosine": 0.5 * (1 + math.cos(math.pi * phase)), "linear": 1 - phase, "constant": 1.0}
    return first * shrink[schedule]
