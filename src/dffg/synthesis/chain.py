"""The main idea: walk noise downhill to what the network remembers, and keep the images passed on the way.

    images   start as noise within the pixel bounds, or as pictures of nothing                (starts.py)
    repeat   loss     = distance of the BatchNorm inputs from their running statistics      (objective.py)
                        without BatchNorm, how alike patches are                            (patches.py)
             gradient = d loss / d images, varied for diversity                             (variability.py)
             hand out the images; those past the burn-in are kept as calibration data       (snapshots.py)
             images   = images - step_size * sign(momentum of the gradients), clipped       (update.py)

One run from noise to the last step is a chain; chains repeat until enough images exist. This follows "DFFG: Fast
Gradient Iteration for Data-free Quantization" (Leng et al., BMVC 2023), of which only the abstract is public: the four
ideas (`docs/method.md`) are theirs, every constant is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import channels_last
from dffg.machine.replay import Replayed
from dffg.synthesis.objective import Objective
from dffg.synthesis.patches import PatchObjective
from dffg.synthesis.starts import STARTS, Start, start_from_noise
from dffg.synthesis.update import Step, momentum_sign_step, step_size_at
from dffg.synthesis.variability import VARIABILITIES, GradientAt, Transform, Variability, VariabilityOptions


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A batch that a chain passes: `images` is (batch, ...) network input after `step` updates.

    `loss` is None where no pass was made, else what its own pass measured: of exactly these images or, under input
    diversity and lookahead, of what was looked at in their place.
    """

    images: Tensor
    step: int
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of the iteration that can be replaced; `method_of` puts ours together."""

    objective: Callable[[Tensor], Tensor]
    vary: Variability
    step: Step = momentum_sign_step
    start: Start = start_from_noise

    @cached_property
    def gradient_at(self) -> GradientAt:
        """Loss and gradient of the objective; one for all steps of all chains."""
        return gradient_of(self.objective)


def method_of(captured: Captured, config: SynthesisConfig) -> Method:
    """The parts that a configuration names; many chains share one."""
    return Method(
        objective=_objective(captured, config),
        vary=VARIABILITIES[config.variability],
        start=STARTS[config.start],
    )


def _objective(captured: Captured, config: SynthesisConfig) -> Callable[[Tensor], Tensor]:
    if not captured.batch_norms:
        return PatchObjective(captured.module, captured.spec)
    return Objective(captured, per_image=config.statistics == "image", slack=config.slack)


def run_chain(captured: Captured, config: SynthesisConfig, chain: int, method: Method | None = None) -> Iterator[Visit]:
    """One chain, every step of it: the images after `step` updates, with their loss.

    Idea 2 and 4 of the paper meet here. The pass that yields the next gradient is also the one that scores the current
    images, so the last images of a chain are scored and no update is made for nothing: `steps` passes, `steps` images.
    The last pass goes forward only.
    """
    method = method or method_of(captured, config)
    generator = chain_generator(config.seed, chain)
    bounds = low, high = input_bounds(captured.spec, captured.device)
    width = high - low
    options = VariabilityOptions(
        strength=config.variability_strength,
        samples=config.variability_samples,
        pixel_width=width,
        are_pictures=captured.spec.is_pixels,
        generator=generator,
    )
    images = channels_last(method.start(config, captured.spec, generator, captured.device))
    velocity, variance = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(config.steps):
        step_size = width * step_size_at(step, config.steps, config.step_size, config.schedule)
        ahead = torch.clamp(images - step_size * config.decay * velocity, *bounds) if config.lookahead else images
        is_last = step == config.steps - 1
        look = loss_of(method.objective) if is_last else method.gradient_at
        loss, gradient, variance = method.vary(look, ahead, variance, options)
        yield Visit(images=images, step=step, loss=loss)
        if is_last:
            return
        images, velocity = method.step(
            images, gradient, velocity, step_size=step_size, decay=config.decay, bounds=bounds
        )


def gradient_of(objective: Callable[[Tensor], Tensor]) -> GradientAt:
    """Loss of a batch, and its gradient with respect to the images, seen through an optional transform."""

    def with_gradient(images: Tensor, transform: Transform | None = None) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_(True)
        loss = objective(images if transform is None else transform(images))
        (gradient,) = torch.autograd.grad(loss, images)
        return loss.detach(), gradient

    replayed = Replayed(with_gradient)

    def gradient_at(images: Tensor, transform: Transform | None = None) -> tuple[float, Tensor]:
        loss, gradient = replayed(images) if transform is None else with_gradient(images, transform)
        return float(loss), gradient

    return gradient_at


def loss_of(objective: Callable[[Tensor], Tensor]) -> GradientAt:
    """As `gradient_of` where no update follows: the loss alone, beside zeros."""

    @torch.no_grad()
    def loss_at(images: Tensor, transform: Transform | None = None) -> tuple[float, Tensor]:
        return float(objective(images if transform is None else transform(images))), torch.zeros_like(images)

    return loss_at


def chain_generator(seed: int, chain: int) -> torch.Generator:
    """Independent streams for neighboring seeds and chains."""
    mixed = torch.randint(2**62, (), generator=torch.Generator().manual_seed((seed << 20) + chain))
    return torch.Generator().manual_seed(int(mixed))
