"""DeepInversion (Yin et al., CVPR 2020): pictures of given classes with the remembered batch statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import channels_last
from dffg.spec import ImageSpec
from dffg.synthesis.baselines.descent import descend
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.probe import LayerStatistics, Probe

FIRST_LAYER_WEIGHT = 10.0
WIDEST_SMALL_PICTURE = 64


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Learning rate, weights of the terms, and how many pixels a picture is rolled at most."""

    learning_rate: float
    betas: tuple[float, float]
    statistics: float
    variation: float
    norm: float
    roll: int


SMALL_PICTURES = Constants(learning_rate=0.05, betas=(0.9, 0.999), statistics=10.0, variation=2.5e-5, norm=0.0, roll=2)
LARGE_PICTURES = Constants(learning_rate=0.25, betas=(0.5, 0.9), statistics=0.01, variation=1e-4, norm=1e-5, roll=30)


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """Adam on batch statistics, cross-entropy to random classes and the priors of a natural picture.

        loss = cross_entropy + r_feature * sum_i w_i ( |s_i^2 - running_var_i| + |m_i - running_mean_i| )
               + tv * total_variation + l2 * mean over images of |image|,      w = 10 for the first layer, else 1

    where |.| are norms over channels, not squared, in the network's own units. Every pass sees the pictures rolled by
    up to `roll` pixels each way and flipped half of the time; after every step they are clipped to the legal pixels.
    Adam with a cosine to 0 over 2000 iterations, a start from N(0, 1), classes drawn once per image.
    The authors' constants as described in the literature: learning rate 0.05, betas (0.9, 0.999), r_feature 10, tv
    2.5e-5, roll 2 (CIFAR-10) up to a width of 64, and 0.25, (0.5, 0.9), 0.01, 1e-4, l2 1e-5, roll 30 (ImageNet) beyond.

    We differ: small pictures have the cosine, the flips, the clipping and the weight of the first layer of large ones
    (theirs have none), one resolution (theirs begins at half of it for large pictures), no warm-up of the learning
    rate, no adaptive competition with a student, a clipped start. Channels that BatchNorm multiplies by 0 are left out.
    Inputs that are not pictures are neither rolled, flipped nor smoothed; answers that are not (batch, classes) have no
    cross-entropy.
    """
    generator = chain_generator(config.seed, chain)
    low, high = input_bounds(captured.spec, captured.device)
    start = torch.randn(config.batch_size, *captured.spec.shape, generator=generator).to(captured.device)
    images = channels_last(torch.clamp(start, low, high)).requires_grad_(True)
    constants = constants_for(captured.spec)
    optimizer = torch.optim.Adam([images], lr=constants.learning_rate, betas=constants.betas)

    def clip() -> None:
        with torch.no_grad():
            images.copy_(torch.clamp(images, low, high))

    yield from descend(
        images,
        Inversion(captured, constants, config.batch_size, generator),
        optimizer,
        config.steps,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps),
        after=clip,
    )


def constants_for(spec: ImageSpec) -> Constants:
    """The constants for inputs of this width."""
    return SMALL_PICTURES if spec.shape[-1] <= WIDEST_SMALL_PICTURE else LARGE_PICTURES


class Inversion:
    """The loss of a batch whose images keep their classes; every call jitters anew."""

    def __init__(self, captured: Captured, constants: Constants, count: int, generator: torch.Generator) -> None:
        self._probe = Probe(captured)
        self._constants = constants
        self._generator = generator
        self._are_pictures = captured.spec.is_pixels
        self._classes = self._draw_classes(captured, count)

    def __call__(self, images: Tensor) -> Tensor:
        """Loss of a batch of network inputs."""
        seen = jitter(images, self._constants.roll, self._generator) if self._are_pictures else images
        layers, answer = self._probe.with_answer(seen)
        loss = self._constants.statistics * statistics_loss(layers) + self._constants.norm * mean_norm(seen)
        if self._are_pictures:
            loss = loss + self._constants.variation * total_variation(seen)
        return loss if self._classes is None else loss + F.cross_entropy(answer, self._classes)

    def _draw_classes(self, captured: Captured, count: int) -> Tensor | None:
        with torch.no_grad():
            _, answer = self._probe.with_answer(torch.zeros(2, *captured.spec.shape, device=captured.device))
        if answer.dim() != 2:
            return None
        return torch.randint(answer.shape[1], (count,), generator=self._generator).to(captured.device)


def statistics_loss(layers: Sequence[LayerStatistics]) -> Tensor:
    """Norms over channels of the errors of variance and mean, summed over layers, the first one times 10."""
    losses = torch.stack([layer_loss(layer) for layer in layers])
    return losses.sum() + (FIRST_LAYER_WEIGHT - 1) * losses[0]


def layer_loss(layer: LayerStatistics) -> Tensor:
    """One layer, in the network's own units: s^2 - running_var = sd^2 (std_ratio^2 - 1), as eps cancels."""
    var_error = layer.std.square() * (layer.std_ratio.square() - 1)
    mean_error = layer.std * layer.mean_error
    return norm(var_error) + norm(mean_error)


def total_variation(images: Tensor) -> Tensor:
    """Norms over the whole batch of the differences between neighbors in a row, a column and both diagonals."""
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([norm(difference) for difference in differences]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """Norm of an image, averaged over images."""
    return norm(images.flatten(1), dim=1).mean()


def norm(values: Tensor, dim: int | None = None) -> Tensor:
    """Euclidean norm along an axis, or of all values; its gradient at 0 is 0."""
    length: Tensor = torch.linalg.vector_norm(values, dim=dim)
    return length


def jitter(images: Tensor, roll: int, generator: torch.Generator) -> Tensor:
    """The batch rolled by up to `roll` pixels along both axes, and mirrored half of the time; one draw for all."""
    down, right = torch.randint(-roll, roll + 1, (2,), generator=generator).tolist()
    mirrored = torch.rand((), generator=generator) < 0.5
    rolled = torch.roll(images, (down, right), (-2, -1))
    return rolled.flip(-1) if mirrored else rolled
