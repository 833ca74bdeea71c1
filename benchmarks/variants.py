"""Parts of the iteration that differ from `synthesis/chain.py`, for the ablation. None is an option of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dffg.bounds import Bounds, input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.graph.nodes import calls
from dffg.machine.device import channels_last
from dffg.spec import ImageSpec
from dffg.synthesis.baselines.dgh import smooth
from dffg.synthesis.chain import Method
from dffg.synthesis.objective import Objective, squares
from dffg.synthesis.probe import LayerStatistics, Probe, moments, passed_with_moments
from dffg.synthesis.starts import start_from_noise
from dffg.synthesis.statistics import batch_norm_inputs, batch_norm_statistics_loss
from dffg.synthesis.update import momentum_sign_step
from dffg.synthesis.variability import GradientAt, VariabilityOptions, input_diversity, none, random_view

Replace = Callable[[Method, Captured, SynthesisConfig], Method]


def with_parts(**parts: Callable[[Captured, SynthesisConfig], Any]) -> Replace:
    """Replace parts of a method by others made for the network and configuration at hand."""

    def apply(method: Method, captured: Captured, config: SynthesisConfig) -> Method:
        return replace(method, **{name: make(captured, config) for name, make in parts.items()})

    return apply


# Losses


def objective_of(
    of_layers: Callable[[list[LayerStatistics]], Tensor],
) -> Callable[[Captured, SynthesisConfig], Callable[[Tensor], Tensor]]:
    """A loss of what the layers measure, made for the network at hand."""

    def make(captured: Captured, config: SynthesisConfig) -> Callable[[Tensor], Tensor]:
        probe = Probe(captured)
        return lambda images: of_layers(probe(images))

    return make


def with_loss(of_layers: Callable[[list[LayerStatistics]], Tensor]) -> Replace:
    """The method with another loss."""
    return with_parts(objective=objective_of(of_layers))


def by_channels(layers: list[LayerStatistics]) -> Tensor:
    """Every channel of the network weighs the same, so that wide layers weigh more."""
    return torch.cat([squares(layer, 0.0) for layer in layers]).mean()


def raw_units(layers: list[LayerStatistics]) -> Tensor:
    """ZeroQ's distance, in the units of each channel and summed over channels, but over the batch."""
    return torch.stack(
        [(layer.std * layer.mean_error).square().sum() + (layer.std * (layer.std_ratio - 1)).square().sum()
         for layer in layers]
    ).sum()  # fmt: skip


def distance(layer: LayerStatistics, slack: float = 0.0) -> Tensor:
    """That of one layer from what it remembers, averaged over live channels and images."""
    terms = squares(layer, slack)
    return terms.sum() / (layer.live.sum().clamp(min=1) * (len(terms) if terms.dim() == 2 else 1))


def first_layer_tenfold(layers: list[LayerStatistics]) -> Tensor:
    """The first layer weighs ten times as much (DeepInversion)."""
    return torch.stack([distance(layer) * (10 if index == 0 else 1) for index, layer in enumerate(layers)]).mean()


def deviation_tenfold(layers: list[LayerStatistics]) -> Tensor:
    """Standard deviations weigh ten times as much as means (DGH)."""
    return torch.stack(
        [(layer.mean_error.square() + 10 * (layer.std_ratio - 1).square()).mean() for layer in layers]
    ).mean()


class RunningMix:
    """Statistics over all images made so far: those of the batch, mixed with what earlier chains ended with."""

    def __init__(self, captured: Captured, config: SynthesisConfig) -> None:
        self._probe = Probe(captured)
        self._steps, self._calls = config.steps, 0
        self._past: list[tuple[Tensor, Tensor]] = []
        self._chains = 0

    def __call__(self, images: Tensor) -> Tensor:
        layers = self._probe(images)
        moments = [(layer.mean_error, layer.std_ratio.square() + layer.mean_error.square()) for layer in layers]
        loss = torch.stack([self._layer_loss(index, *now) for index, now in enumerate(moments)]).mean()
        self._calls += 1
        if self._calls % self._steps == 0:
            self._remember(moments)
        return loss

    def _layer_loss(self, index: int, mean: Tensor, square: Tensor) -> Tensor:
        if self._past:
            past_mean, past_square = self._past[index]
            share = 1 / (self._chains + 1)
            mean, square = share * mean + (1 - share) * past_mean, share * square + (1 - share) * past_square
        ratio = (square - mean.square()).clamp(min=1e-12).sqrt()
        return (mean.square() + (ratio - 1).square()).mean()

    def _remember(self, moments: list[tuple[Tensor, Tensor]]) -> None:
        now = [(mean.detach(), square.detach()) for mean, square in moments]
        past = self._past or now
        share = 1 / (self._chains + 1)
        self._past = [
            (share * a + (1 - share) * c, share * b + (1 - share) * d) for (a, b), (c, d) in zip(now, past, strict=True)
        ]
        self._chains += 1


def plain_formulation(captured: Captured, config: SynthesisConfig) -> Callable[[Tensor], Tensor]:
    """Our loss as `synthesis/statistics.py` writes it, by autograd on the network as it was captured."""
    network, per_image = batch_norm_inputs(captured), config.statistics == "image"

    def loss(images: Tensor) -> Tensor:
        return batch_norm_statistics_loss(
            captured.batch_norms, network(images), per_image=per_image, slack=config.slack
        )

    return loss


def sampled_statistics(largest: int) -> Callable[[Captured, SynthesisConfig], Objective]:
    """Our loss, where maps of more places than `largest` are measured at every second row and column."""

    def make(captured: Captured, config: SynthesisConfig) -> Objective:
        objective = Objective(captured, per_image=config.statistics == "image", slack=config.slack)
        network = objective._probe._network  # how its layers are measured is no option of the library
        for node in network.graph.nodes:
            if calls(node, passed_with_moments):
                node.target, node.args = passed_with_sampled_moments, (*node.args, largest)
        network.recompile()
        return objective

    return make


def passed_with_sampled_moments(
    activation: Tensor, per_image: bool, owned: bool, largest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `passed_with_moments`, of a fourth of the places where there are more than `largest`."""
    step = 2 if activation[0, 0].numel() > largest else 1
    passed, mean, var = _SampledMoments.apply(activation, per_image, owned, step)
    return passed, mean, var


class _SampledMoments(torch.autograd.Function):
    """As `Moments`; their gradient is added where they were measured and nowhere else."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, per_image: bool, owned: bool, step: int) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = moments(channels_last(_sample(activation, step)), per_image)
        ctx.save_for_backward(activation, mean)
        ctx.owned, ctx.step = owned, step
        return activation, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_passed: Tensor, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, None, None, None]:
        activation, mean = ctx.saved_tensors
        seen = _sample(activation, ctx.step)
        count = seen.numel() // mean.numel()
        slope = 2 * d_var / count
        offset = d_mean / count - slope * mean
        shape = (-1 if mean.dim() == 2 else 1, seen.shape[1], *[1] * (seen.dim() - 2))
        gradient = d_passed if ctx.owned else d_passed.clone()
        _sample(gradient, ctx.step).add_(offset.reshape(shape)).addcmul_(seen, slope.reshape(shape))
        return gradient, None, None, None


def _sample(activation: Tensor, step: int) -> Tensor:
    """Every n-th place of each axis behind the channels."""
    return activation[(slice(None), slice(None), *[slice(None, None, step)] * (activation.dim() - 2))]


# Steps, views, starts


def raw_gradient_step(
    images: Tensor, gradient: Tensor, velocity: Tensor, *, step_size: Tensor | float, decay: float, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """Our step without the sign: the velocity itself, divided by its mean size so that the paths are equally long."""
    _, velocity = momentum_sign_step(images, gradient, velocity, step_size=0.0, decay=decay, bounds=bounds)
    size = velocity.abs().flatten(1).mean(1).clamp(min=1e-12).reshape(-1, *[1] * (velocity.dim() - 1))
    return torch.clamp(images - step_size * velocity / size, *bounds), velocity


def blurred_image_step(
    images: Tensor, gradient: Tensor, velocity: Tensor, *, step_size: Tensor | float, decay: float, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """Our step, then a low-pass of the image."""
    images, velocity = momentum_sign_step(images, gradient, velocity, step_size=step_size, decay=decay, bounds=bounds)
    return smooth(images), velocity


def blurred_gradient(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Our gradient, with a low-pass (TI-FGSM's idea)."""
    loss, gradient, variance = input_diversity(gradient_at, images, variance, options)
    return loss, smooth(gradient), variance


def shared_view(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """One random view for the whole batch."""
    one = random_view(images[:1], options)
    loss, gradient = gradient_at(images, lambda batch: torch.cat([one(image) for image in batch.split(1)]))
    return loss, gradient, variance


class RandomLayerWeights:
    """Every pass weighs the layers anew, uniformly from 0 to 2: the gradient varies because the question does."""

    def __init__(self, captured: Captured, config: SynthesisConfig) -> None:
        self._probe = Probe(captured)
        self._slack = config.slack
        self._generator = torch.Generator().manual_seed(config.seed)

    def __call__(self, images: Tensor) -> Tensor:
        losses = torch.stack([distance(layer, self._slack) for layer in self._probe(images)])
        return (2 * torch.rand(len(losses), generator=self._generator) * losses).mean()


def apart(
    gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
) -> tuple[float, Tensor, Tensor]:
    """Take half of what the gradients of a batch have in common away, so that images are pushed apart."""
    loss, gradient, variance = none(gradient_at, images, variance, options)
    return loss, gradient - 0.5 * gradient.mean(0, keepdim=True), variance


class HalfResolutionFirst:
    """Look at images of half the size for the first half of a chain, at a quarter of the cost."""

    def __init__(self, captured: Captured, config: SynthesisConfig) -> None:
        self._steps, self._calls = config.steps, 0

    def __call__(
        self, gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
    ) -> tuple[float, Tensor, Tensor]:
        early = self._calls % self._steps < self._steps // 2
        self._calls += 1
        view = random_view(images, options)
        loss, gradient = gradient_at(images, (lambda batch: F.avg_pool2d(view(batch), 2)) if early else view)
        return loss, gradient, variance


def blurred_start(config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator, device: torch.device) -> Tensor:
    """Noise of the same deviation, at a quarter of the resolution."""
    low, high = input_bounds(spec, device)
    channels, height, width = spec.shape
    small = torch.randn(config.batch_size, channels, -(-height // 4), -(-width // 4), generator=generator).to(device)
    noise = F.interpolate(small, size=(height, width), mode="bilinear")
    noise = noise / noise.std()
    return torch.clamp((low + high) / 2 + config.start_std * (high - low) * noise, low, high)


def earlier_image(method: Method, captured: Captured, config: SynthesisConfig) -> Method:
    """Start a chain half way between noise and what the chain before ended with."""
    last: list[Tensor] = []

    def start(config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator, device: torch.device) -> Tensor:
        noise = start_from_noise(config, spec, generator, device)
        return (noise + last[-1].roll(1, 0)) / 2 if last else noise

    def step(images: Tensor, *arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        images, velocity = method.step(images, *arguments, **options)
        last[:] = [images]
        return images, velocity

    return replace(method, step=step, start=start)
