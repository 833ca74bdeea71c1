"""What a chain keeps: which of its batches, how many, and how they are stored and sent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dffg.bounds import input_bounds
from dffg.config import JOINT, NOISES, SynthesisConfig
from dffg.images import SnapshotRecord
from dffg.machine.device import HOST
from dffg.spec import ImageSpec

ChainState = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One kept batch: `images` is (batch, ...) network input, which chain passed it, after how many steps, its loss.

    losses: those of all passes of the chain so far, its own last.
    """

    images: Tensor
    chain: int
    step: int
    loss: float | None
    losses: tuple[float | None, ...]

    @property
    def record(self) -> SnapshotRecord:
        """What is remembered of it in a `SyntheticSet`."""
        return SnapshotRecord(chain=self.chain, step=self.step, loss=self.loss, count=len(self.images))


def chains_needed(config: SynthesisConfig) -> int:
    """Chains until `count` images exist, if time allows."""
    return math.ceil(config.count / images_per_chain(config))


def images_per_chain(config: SynthesisConfig) -> int:
    """Images that one chain contributes where nothing ends it early."""
    if config.generator in JOINT:
        return config.count
    return config.batch_size * snapshots_per_chain(config)


def images_of(chain: int, config: SynthesisConfig) -> int:
    """Images that a chain contributes where time allows; the last one may end early."""
    return min(images_per_chain(config), config.count - chain * images_per_chain(config))


def is_kept(step: int, config: SynthesisConfig) -> bool:
    """Whether the batch before this step of a chain is kept."""
    return step >= config.burn_in and (step - config.burn_in) % config.keep_every == 0


def snapshots_per_chain(config: SynthesisConfig) -> int:
    """Batches that one chain contributes."""
    return sum(is_kept(step, config) for step in range(config.steps))


def passes_per_chain(config: SynthesisConfig) -> int:
    """Forward and backward passes of one chain; noise looks at no network."""
    if config.generator in NOISES:
        return 0
    return config.steps * (1 + config.variability_samples if config.variability == "variance-tuning" else 1)


def as_stored(images: Tensor, spec: ImageSpec) -> Tensor:
    """Contiguous copies, rounded as `SyntheticSet.save` would round them: what is stored is what calibrated.

    Generators that do not keep to the legal pixels keep what they made.
    """
    images = images.detach().to(HOST).contiguous()
    low, high = input_bounds(spec)
    slack = 1e-4 * (high - low)
    if not spec.is_pixels or (images < low - slack).any() or (images > high + slack).any():
        return images.clone()
    return torch.from_numpy(spec.from_uint8(spec.to_uint8(images.numpy())))


def packed(kept: list[Snapshot], spec: ImageSpec) -> ChainState:
    """What a chain has kept as tensors, numbers and text; pixels as integers, a fourth of the size, where they are."""
    images = torch.cat([snapshot.images for snapshot in kept])
    if spec.is_pixels:
        pixels = torch.from_numpy(spec.to_uint8(images.numpy()))
        images = pixels if torch.equal(_from_pixels(pixels, spec), images) else images
    records = [(snapshot.step, snapshot.loss, len(snapshot.images)) for snapshot in kept]
    return {"images": images, "records": records, "losses": list(kept[-1].losses)}


def unpacked(state: ChainState, chain: int, spec: ImageSpec) -> Iterator[Snapshot]:
    """The snapshots of a chain again."""
    images = state["images"]
    images = _from_pixels(images, spec) if images.dtype == torch.uint8 else images
    parts = torch.split(images, [count for *_, count in state["records"]])
    for part, (step, loss, _) in zip(parts, state["records"]):
        yield Snapshot(images=part, chain=chain, step=step, loss=loss, losses=tuple(state["losses"][: step + 1]))


def _from_pixels(pixels: Tensor, spec: ImageSpec) -> Tensor:
    return torch.from_numpy(spec.from_uint8(pixels.numpy()))
