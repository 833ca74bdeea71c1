"""ZeroQ (Cai et al., CVPR 2020): every image alone is made to have the remembered statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import channels_last
from dffg.synthesis.baselines.descent import descend, per_image_norm
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.probe import Probe

LEARNING_RATE = 0.5
PLATEAU_PATIENCE, PLATEAU_FACTOR, LOWEST_RATE = 100, 0.1, 1e-4
START_DIVISOR = 5418.75
EPS = 1e-6


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """Adam on the squared distance of means and standard deviations, per image, in the network's own units.

        loss = sum_i ( |m_i - running_mean_i|^2 + |s_i - sd_i|^2 ) / images,     layer 0: the input, mean 0 and sd 1

    Channels and layers are summed, so wide and loud layers weigh more. Adam at 0.5, divided by 10 when the loss has not
    fallen for 100 steps, 500 iterations, 64 images a batch (the released run script), a nearly black start: integers 0
    to 254, minus 127.5, over 5418.75. Pixels are not clipped. Constants: the authors' code as described in the
    literature.

    Inputs are taken to be normalized to about mean 0 and deviation 1, as the input term says, whatever their bounds.

    We differ in looking at the inputs of BatchNorm calls in the graph (the code pairs convolutions and BatchNorms by
    position), in using BatchNorm's own eps and the biased variance for layers, in leaving out channels that BatchNorm
    multiplies by 0, and in scoring the images that are kept (499 updates, 500 passes). Mixed precision is not part of
    it.
    """
    generator = chain_generator(config.seed, chain)
    levels = torch.randint(0, 255, (config.batch_size, *captured.spec.shape), generator=generator).to(captured.device)
    images = channels_last((levels - 127.5) / START_DIVISOR).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE, min_lr=LOWEST_RATE
    )
    probe = Probe(captured)
    yield from descend(
        images, lambda batch: statistics_loss(probe, batch), optimizer, config.steps, scheduler=scheduler
    )


def statistics_loss(probe: Probe, images: Tensor) -> Tensor:
    """ZeroQ's loss, with the input as layer 0."""
    layers = probe(images, per_image=True)
    terms = [layer.std * layer.mean_error for layer in layers]
    terms += [layer.std * (layer.std_ratio - 1) for layer in layers]
    return per_image_norm([*terms, *input_terms(images)])


def input_terms(images: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every image's own channels from mean 0 and standard deviation 1."""
    var, mean = torch.var_mean(images.flatten(2), dim=2)
    return mean, (var + EPS).sqrt() - 1
