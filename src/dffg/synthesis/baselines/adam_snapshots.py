"""A control for our step: everything ours but the update, which is Adam's, and the variability, which is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import channels_last
from dffg.synthesis.baselines.descent import descend
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.objective import Objective
from dffg.synthesis.starts import start_from_noise


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """Our loss, start and snapshots; Adam with the step of ours, clipped to the bounds.

        images = low + (high - low) * unit,      unit <- clip(unit - Adam's step, 0, 1)

    Adam walks on `unit`, images as fractions of the pixel range of their channel. Its step is about as long as its
    learning rate whatever the gradient, like a sign step: with a learning rate of 1 / steps, shrunk along the same
    cosine, both may go equally far, half the range, and differ in direction alone. Betas are Adam's own.
    """
    generator = chain_generator(config.seed, chain)
    low, high = input_bounds(captured.spec, captured.device)
    start = start_from_noise(SynthesisConfig(batch_size=config.batch_size), captured.spec, generator).to(
        captured.device
    )
    unit = channels_last(torch.clamp((start - low) / (high - low), 0, 1)).requires_grad_(True)
    objective = Objective(captured, slack=config.slack)

    def images_of(fractions: Tensor) -> Tensor:
        return channels_last(torch.lerp(low, high, fractions))

    def clip() -> None:
        with torch.no_grad():
            unit.clamp_(0, 1)

    optimizer = torch.optim.Adam([unit], lr=1 / config.steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps)
    walk = descend(
        unit, lambda fractions: objective(images_of(fractions)), optimizer, config.steps, scheduler=cosine, after=clip
    )
    for visit in walk:
        yield replace(visit, images=images_of(visit.images))
