"""The main idea: walk noise downhill to what the network remembers, and keep the images passed on the way.

    images   start as noise within the pixel bounds
    repeat   loss     = distance of the BatchNorm inputs from their running statistics      (statistics.py)
             gradient = d loss / d images, varied for diversity                             (variability.py)
             keep the images, once past the burn-in, as calibration data
             images   = images - step_size * sign(momentum of the gradients), clipped       (update.py)

One run from noise to the last step is a chain; chains repeat until enough images exist. This follows "DFFG: Fast
Gradient Iteration for Data-free Quantization" (Leng et al., BMVC 2023), of which only the abstract is public: the four
ideas are theirs, every constant is ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dffg.captured import Captured
from dffg.config import SynthesisConfig
from dffg.images import SnapshotRecord, SyntheticSet, concatenate
from dffg.objective import Objective
from dffg.update import momentum_sign_step, step_size_at
from dffg.variability import VARIABILITIES, Transform, VariabilityOptions


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One kept batch: `images` is (batch, ...) network input.

    `loss` is what its own pass measured: of exactly these images before rounding to 8-bit pixels, or, under input
    diversity, of the view through which they were seen.
    """

    images: Tensor
    chain: int
    step: int
    loss: float

    @property
    def record(self) -> SnapshotRecord:
        """What is remembered of it in a `SyntheticSet`."""
        return SnapshotRecord(chain=self.chain, step=self.step, loss=self.loss, count=len(self.images))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a synthesis stands after a pass."""

    chain: int
    chains: int
    step: int
    steps: int
    loss: float
    images: int
    count: int


ProgressCallback = Callable[[Progress], None]


def synthesize(
    captured: Captured, config: SynthesisConfig | None = None, *, progress: ProgressCallback | None = None
) -> Iterator[Tensor]:
    """Make calibration images: a stream of batches of network inputs, each (batch_size, *spec.shape).

    Batches are yielded as they are made, so memory does not grow with `config.count`. The same seed, machine, thread
    count and batch size give the same bytes. Pictures are rounded to 8-bit pixels when they are kept.
    """
    for snapshot in snapshots(captured, config or SynthesisConfig(), progress=progress):
        yield snapshot.images


def synthesize_set(
    captured: Captured, config: SynthesisConfig | None = None, *, progress: ProgressCallback | None = None
) -> SyntheticSet:
    """Make calibration images and collect them with their configuration, seed and losses."""
    config = config or SynthesisConfig()
    kept = list(snapshots(captured, config, progress=progress))
    return SyntheticSet(
        inputs=concatenate([snapshot.images.numpy() for snapshot in kept]),
        spec=captured.spec,
        config=config,
        snapshots=tuple(snapshot.record for snapshot in kept),
    )


def chains_needed(config: SynthesisConfig) -> int:
    """Chains until `count` images exist, if time allows."""
    return math.ceil(config.count / (config.batch_size * snapshots_per_chain(config)))


def snapshots(
    captured: Captured, config: SynthesisConfig, *, progress: ProgressCallback | None = None
) -> Iterator[Snapshot]:
    """As `synthesize`, with chain, step and loss of every kept batch."""
    started = time.monotonic()
    made = 0
    objective = Objective(captured, per_image=config.statistics == "image")
    for chain in range(chains_needed(config)):
        for snapshot in run_chain(captured, config, chain, objective):
            late = config.max_seconds is not None and time.monotonic() - started > config.max_seconds
            keep = _is_kept(snapshot.step, config) or (late and made == 0)
            if keep:
                images = _as_stored(snapshot.images[: config.count - made], captured)
                made += len(images)
            if progress is not None:
                progress(_progress(snapshot, config, made))
            if keep:
                yield Snapshot(images=images, chain=chain, step=snapshot.step, loss=snapshot.loss)
            if late or made == config.count:
                return


def run_chain(
    captured: Captured, config: SynthesisConfig, chain: int, objective: Objective | None = None
) -> Iterator[Snapshot]:
    """One chain, every step of it: the images after `step` updates, with their loss.

    `objective` is made for the configuration where it is not given; many chains share one.

    Idea 2 and 4 of the paper meet here. The pass that yields the next gradient is also the one that scores the current
    images, so the last images of a chain are scored and no update is made for nothing: `steps` passes, `steps` images.
    """
    objective = objective or Objective(captured, per_image=config.statistics == "image")
    generator = torch.Generator().manual_seed(_chain_seed(config.seed, chain))
    low, high = (torch.from_numpy(bound) for bound in captured.spec.input_bounds())
    width = high - low
    options = VariabilityOptions(
        strength=config.variability_strength,
        samples=config.variability_samples,
        pixel_width=width,
        are_pictures=captured.spec.is_pixels,
        generator=generator,
    )
    vary = VARIABILITIES[config.variability]

    def gradient_at(images: Tensor, transform: Transform | None = None) -> tuple[float, Tensor]:
        images = images.detach().requires_grad_(True)
        loss = objective(images if transform is None else transform(images))
        (gradient,) = torch.autograd.grad(loss, images)
        return float(loss.detach()), gradient

    noise = torch.randn(config.batch_size, *captured.spec.shape, generator=generator)
    images = torch.clamp((low + high) / 2 + config.start_std * width * noise, low, high)
    images = _channels_last(images)
    velocity, variance = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(config.steps):
        loss, gradient, variance = vary(gradient_at, images, variance, options)
        yield Snapshot(images=images, chain=chain, step=step, loss=loss)
        step_size = width * step_size_at(step, config.steps, config.step_size, config.schedule)
        images, velocity = momentum_sign_step(
            images, gradient, velocity, step_size=step_size, decay=config.decay, bounds=(low, high)
        )


def _is_kept(step: int, config: SynthesisConfig) -> bool:
    return step >= config.burn_in and (step - config.burn_in) % config.keep_every == 0


def snapshots_per_chain(config: SynthesisConfig) -> int:
    """Batches that one chain contributes."""
    return sum(_is_kept(step, config) for step in range(config.steps))


def _chain_seed(seed: int, chain: int) -> int:
    """Independent streams for neighbouring seeds and chains."""
    return int(torch.randint(2**62, (), generator=torch.Generator().manual_seed((seed << 20) + chain)))


def _channels_last(images: Tensor) -> Tensor:
    """Convolutions on the CPU are faster in this layout; the numbers' meaning does not change."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def _as_stored(images: Tensor, captured: Captured) -> Tensor:
    """Contiguous copies, rounded as `SyntheticSet.save` would round them: what is stored is what calibrated."""
    images = images.detach().contiguous()
    if not captured.spec.is_pixels:
        return images.clone()
    return torch.from_numpy(captured.spec.from_uint8(captured.spec.to_uint8(images.numpy())))


def _progress(snapshot: Snapshot, config: SynthesisConfig, made: int) -> Progress:
    return Progress(
        chain=snapshot.chain + 1,
        chains=chains_needed(config),
        step=snapshot.step + 1,
        steps=config.steps,
        loss=snapshot.loss,
        images=made,
        count=config.count,
    )
