"""What makes the images good? One factor of the iteration at a time, the others at their defaults.

Judged by KL divergence to the float network on real, unlabelled calibration images; evaluation data is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from benchmarks.simulated import BATCH, Simulated, quantizer
from dffg.captured import Captured
from dffg.chain import Method, chain_generator, input_bounds, method_of, run_chain, start_from_noise
from dffg.config import SynthesisConfig
from dffg.evaluation.metrics import kl_divergence
from dffg.images import Array, ImageSpec
from dffg.objective import distance
from dffg.probe import LayerStatistics, Probe
from dffg.synthesis import snapshots
from dffg.update import Bounds, momentum_sign_step
from dffg.variability import GradientAt, VariabilityOptions, input_diversity, random_view

SUITE = "ablation"
# At 4 bits with plain ranges only the small residual networks keep their accuracy.
EASY = (("W4A4", "minmax"), ("W4A4", "mse"), ("W8A8", "mse"))
HARD = (("W6A6", "minmax"), ("W6A6", "mse"), ("W8A8", "mse"))
EASY_NETWORKS = ("cifar10_resnet20", "cifar10_resnet56")
JUDGED = {"efficientnet_lite0": 96, "mobilenet_v2": 96}
JUDGED_SMALL = 1024
COUNT = 64

Replace = Callable[[Method, Captured, SynthesisConfig], Method]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One factor set otherwise: options of the configuration, or a part of the method replaced."""

    factor: str
    options: dict[str, Any] = field(default_factory=dict)
    replace: Replace | None = None


def _with(**parts: Callable[[Captured, SynthesisConfig], Any]) -> Replace:
    """Replace parts of a method by others made for the network and configuration at hand."""

    def apply(method: Method, captured: Captured, config: SynthesisConfig) -> Method:
        whole = {name: getattr(method, name) for name in ("objective", "vary", "step", "start")}
        return Method(**{**whole, **{name: make(captured, config) for name, make in parts.items()}})

    return apply


# Losses


def _loss(of_layers: Callable[[list[LayerStatistics]], Tensor], *, per_image: bool = False) -> Replace:
    def make(captured: Captured, config: SynthesisConfig) -> Callable[[Tensor], Tensor]:
        probe = Probe(captured)
        return lambda images: of_layers(probe(images, per_image=per_image))

    return _with(objective=make)


def by_channels(layers: list[LayerStatistics]) -> Tensor:
    """Every channel of the network weighs the same, so that wide layers weigh more."""
    terms = torch.cat([layer.mean_error.square() + (layer.std_ratio - 1).square() for layer in layers])
    return terms.mean()


def raw_units(layers: list[LayerStatistics]) -> Tensor:
    """ZeroQ's distance, in the units of each channel and summed over channels, but over the batch."""
    return torch.stack(
        [(layer.std * layer.mean_error).square().sum() + (layer.std * (layer.std_ratio - 1)).square().sum()
         for layer in layers]
    ).sum()  # fmt: skip


def first_layer_tenfold(layers: list[LayerStatistics]) -> Tensor:
    """The first layer weighs ten times as much (DeepInversion)."""
    return torch.stack([distance(layer) * (10 if index == 0 else 1) for index, layer in enumerate(layers)]).mean()


def deviation_tenfold(layers: list[LayerStatistics]) -> Tensor:
    """Standard deviations weigh ten times as much as means (DGH)."""
    return torch.stack(
        [(layer.mean_error.square() + 10 * (layer.std_ratio - 1).square()).mean() for layer in layers]
    ).mean()


def with_slack(slack: float) -> Callable[[list[LayerStatistics]], Tensor]:
    """No force on a statistic within `slack` of its target, in units of the channel's deviation (DSG's idea)."""

    def loss(layers: list[LayerStatistics]) -> Tensor:
        terms = [
            (layer.mean_error.abs() - slack).clamp(min=0).square()
            + ((layer.std_ratio - 1).abs() - slack).clamp(min=0).square()
            for layer in layers
        ]
        return torch.stack([term.mean() for term in terms]).mean()

    return loss


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


# Steps, views, starts


def raw_gradient_step(
    images: Tensor, gradient: Tensor, velocity: Tensor, *, step_size: Tensor | float, decay: float, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """Our step without the sign: the velocity itself, divided by its mean size so that the paths are equally long."""
    _, velocity = momentum_sign_step(images, gradient, velocity, step_size=0.0, decay=decay, bounds=bounds)
    size = velocity.abs().flatten(1).mean(1).clamp(min=1e-12).reshape(-1, *[1] * (velocity.dim() - 1))
    return torch.clamp(images - step_size * velocity / size, *bounds), velocity


def smooth(images: Tensor) -> Tensor:
    """A 3x3 Gaussian blur of deviation 1.25 pixels in every channel."""
    line = torch.exp(-torch.arange(-1.0, 2.0).square() / (2 * 1.25**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


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


def blurred_start(config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """Noise of the same deviation, at a quarter of the resolution."""
    low, high = input_bounds(spec)
    channels, height, width = spec.shape
    small = torch.randn(config.batch_size, channels, -(-height // 4), -(-width // 4), generator=generator)
    noise = F.interpolate(small, size=(height, width), mode="bilinear")
    noise = noise / noise.std()
    return torch.clamp((low + high) / 2 + config.start_std * (high - low) * noise, low, high)


def _earlier_image(method: Method, captured: Captured, config: SynthesisConfig) -> Method:
    """Start a chain half way between noise and what the chain before ended with."""
    last: list[Tensor] = []

    def start(config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator) -> Tensor:
        noise = start_from_noise(config, spec, generator)
        return (noise + last[-1].roll(1, 0)) / 2 if last else noise

    def step(images: Tensor, *arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        images, velocity = method.step(images, *arguments, **options)
        last[:] = [images]
        return images, velocity

    return Method(objective=method.objective, vary=method.vary, step=step, start=start)


CHANGES: dict[str, Change] = {
    "defaults": Change(factor="-"),
    **{f"decay {value:g}": Change(factor="momentum", options={"decay": value}) for value in (0.0, 0.5, 0.9, 1.0)},
    "look ahead": Change(factor="momentum", options={"lookahead": True}),
    "raw gradient": Change(factor="sign", replace=_with(step=lambda *_: raw_gradient_step)),
    **{f"{name} steps": Change(factor="schedule", options={"schedule": name}) for name in ("linear", "constant")},
    **{f"first step {size:g}": Change(factor="step size", options={"step_size": size}) for size in (1 / 32, 1 / 8)},
    **{f"{steps} steps": Change(factor="steps", options={"steps": steps}) for steps in (4, 8)},
    **{
        f"{steps} steps, keep every {every}": Change(factor="steps", options={"steps": steps, "keep_every": every})
        for steps, every in ((32, 2), (64, 4))
    },
    "keep all of a batch of 4": Change(factor="harvest", options={"burn_in": 0, "batch_size": 4}),
    "keep the second half of a batch of 8": Change(factor="harvest", options={"burn_in": 8, "batch_size": 8}),
    "keep every second of it": Change(factor="harvest", options={"burn_in": 8, "keep_every": 2}),
    "keep the last only": Change(factor="harvest", options={"burn_in": 15}),
    **{f"batch {size}": Change(factor="batch", options={"batch_size": size}) for size in (4, 8, 32, 64)},
    "per image": Change(factor="statistics", options={"statistics": "image"}),
    "running mix": Change(factor="statistics", replace=_with(objective=RunningMix)),
    "channels equal": Change(factor="weighting", replace=_loss(by_channels)),
    "raw units summed": Change(factor="weighting", replace=_loss(raw_units)),
    "first layer x 10": Change(factor="weighting", replace=_loss(first_layer_tenfold)),
    "deviations x 10": Change(factor="weighting", replace=_loss(deviation_tenfold)),
    **{f"slack {slack:g}": Change(factor="matching", replace=_loss(with_slack(slack))) for slack in (0.05, 0.2)},
    **{
        f"variability {name}": Change(factor="variability", options={"variability": name})
        for name in ("none", "variance-tuning", "random-mask", "random-scale")
    },
    "one view a batch": Change(factor="variability", replace=_with(vary=lambda *_: shared_view)),
    "views at full strength": Change(factor="variability", options={"variability_strength": 1.0}),
    "gradient blurred": Change(factor="low-pass", replace=_with(vary=lambda *_: blurred_gradient)),
    "image blurred": Change(factor="low-pass", replace=_with(step=lambda *_: blurred_image_step)),
    "blurred noise": Change(factor="start", replace=_with(start=lambda *_: blurred_start)),
    "earlier image": Change(factor="start", options={"burn_in": 15}, replace=_earlier_image),
    **{f"noise of {std:g}": Change(factor="start", options={"start_std": std}) for std in (0.02, 0.1, 0.5)},
    "half size first": Change(factor="resolution", replace=_with(vary=HalfResolutionFirst)),
}
PICTURES_ONLY = ("one view a batch", "views at full strength", "gradient blurred", "image blurred", "half size first")


def make_images(captured: Captured, config: SynthesisConfig, change: Change) -> Array:
    """As `synthesize_set`, with parts of the method replaced."""
    method = method_of(captured, config)
    if change.replace is not None:
        method = change.replace(method, captured, config)
    kept = snapshots(captured, config, run_chain=lambda chain: run_chain(captured, config, chain, method))
    return torch.cat([snapshot.images for snapshot in kept]).numpy()


def run(networks: list[str], seeds: list[int], changes: list[str]) -> None:
    """Measure every change on every network, and append what is not yet in the results."""
    done = {_key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        simulated = Simulated(benchmark)
        judged = benchmark.calibration.first(JUDGED.get(benchmark.name, JUDGED_SMALL))
        inputs = list(judged.batches(BATCH))
        expected = simulated.float_answer(inputs)
        for seed in seeds:
            for name in ("real images", "noise", *changes):
                record = _describe(benchmark, name, seed)
                if _key(record) in done or (name in PICTURES_ONLY and not benchmark.spec.is_pixels):
                    continue
                images = _images(benchmark, simulated.captured, name, seed)
                kl = _divergences(simulated, images, inputs, expected)
                record = {**record, "kl": kl}
                records.append(SUITE, record)
                print(
                    benchmark.name, name, seed, {key: round(value * 1000, 2) for key, value in kl.items()}, flush=True
                )


def _describe(benchmark: Benchmark, name: str, seed: int) -> dict[str, Any]:
    change = CHANGES.get(name)
    config = asdict(_config(change, seed)) if change else {}
    factor = change.factor if change else "yardstick"
    return {"network": benchmark.name, "change": name, "factor": factor, "seed": seed, "config": config}


def _key(record: dict[str, Any]) -> str:
    return repr([record[name] for name in ("network", "change", "seed", "config")])


def _config(change: Change, seed: int) -> SynthesisConfig:
    return SynthesisConfig(count=COUNT, seed=seed, **change.options)


def _images(benchmark: Benchmark, captured: Captured, name: str, seed: int) -> Array:
    if name == "real images":
        return benchmark.real_images(COUNT, seed)
    if name == "noise":
        return torch.randn(COUNT, *captured.spec.shape, generator=chain_generator(seed, 0)).numpy()
    return make_images(captured, _config(CHANGES[name], seed), CHANGES[name])


def _divergences(simulated: Simulated, images: Array, inputs: list[Array], expected: Array) -> dict[str, float]:
    histograms = simulated.observe(images)
    return {
        f"{bits} {ranges}": float(
            np.mean(kl_divergence(expected, simulated.answer(histograms, quantizer(bits, ranges), inputs)))
        )
        for bits, ranges in (EASY if simulated.name in EASY_NETWORKS else HARD)
    }
