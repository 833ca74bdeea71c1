"""Diversifying Sample Generation (Zhang et al., CVPR 2021): ZeroQ that may miss its targets, each image in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import channels_last
from dffg.synthesis.baselines.descent import descend, per_image_norm
from dffg.synthesis.baselines.zeroq import input_terms
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.probe import LayerStatistics, Probe

LEARNING_RATE = 0.9
PLATEAU_PATIENCE, PLATEAU_FACTOR, LOWEST_RATE = 260, 0.1, 1e-4
SLACK_PERCENTILE = 0.9


@dataclass(frozen=True, kw_only=True)
class Slack:
    """How far the mean and the standard deviation of one layer may be off without cost, in the network's own units."""

    mean: Tensor
    std: Tensor


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """Adam on ZeroQ's per-image statistics with slack (SDA), every image with a layer of its own stressed (LSE).

        l[b, i] = sum over channels of max(|m - running_mean| - slack_i, 0)^2 + max(|s - sd| - slack_i', 0)^2
        loss    = mean over images b of sum over layers i of (1 + [b stresses i]) * l[b, i]   + ZeroQ's input term

    slack_i is the 0.9 percentile over channels of |m - running_mean| where the input is Gaussian noise, slack_i' that
    of |s - sd|. The weights are the paper's I + 1 1^T: image b counts layer b twice. Adam at 0.9, divided by 10 when
    the loss has not fallen for 260 steps, 500 iterations, 40 images, a start from N(0, 1); pixels are not clipped.
    Constants: the authors' code as described in the literature.

    We differ: the start is the paper's (the released code draws from U[0, 1)) and so is the weight 2 (the code doubles
    errors before it squares them, for the first 20 images). Images stress the layers in turn where there are more
    images than layers; slack is measured over one Gaussian batch of the chain's own size and over live channels; the
    input term has neither slack nor stress. The further terms of the released code (cross-entropy, total variation, L2,
    spectrum of the batch) are no part of the paper's SDA and LSE and are left out. What is said of
    `dffg.synthesis.baselines.zeroq` holds here too.
    """
    generator = chain_generator(config.seed, chain)
    shape = (config.batch_size, *captured.spec.shape)
    probe = Probe(captured)
    noise, start = (channels_last(torch.randn(shape, generator=generator).to(captured.device)) for _ in range(2))
    with torch.no_grad():
        slacks = [slack_of(layer) for layer in probe(noise)]
    images = start.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE, min_lr=LOWEST_RATE
    )
    yield from descend(
        images, lambda batch: diverse_loss(probe, slacks, batch), optimizer, config.steps, scheduler=scheduler
    )


def diverse_loss(probe: Probe, slacks: Sequence[Slack], images: Tensor) -> Tensor:
    """Slack distribution alignment with layer-wise sample enhancement, and the input term."""
    layers = probe(images, per_image=True)
    losses = torch.stack(
        [slack_loss(layer, slack).expand(len(images)) for layer, slack in zip(layers, slacks, strict=True)], dim=1
    )
    weights = enhancement(len(images), len(layers)).to(images.device)
    return (weights * losses).sum(1).mean() + per_image_norm(input_terms(images))


def slack_loss(layer: LayerStatistics, slack: Slack) -> Tensor:
    """Loss of one layer, for every image where there is an image axis."""
    mean_error, std_error = errors(layer)
    over = torch.relu(mean_error - slack.mean).square() + torch.relu(std_error - slack.std).square()
    return over.sum(-1)


def slack_of(layer: LayerStatistics) -> Slack:
    """The percentile over live channels of what a Gaussian batch is off by; 0 where no channel lives."""
    live = layer.live > 0
    if not live.any():
        return Slack(mean=layer.live.new_zeros(()), std=layer.live.new_zeros(()))
    mean, std = (torch.quantile(error[live], SLACK_PERCENTILE) for error in errors(layer))
    return Slack(mean=mean, std=std)


def errors(layer: LayerStatistics) -> tuple[Tensor, Tensor]:
    """How far mean and standard deviation are off, in the network's own units."""
    return (layer.std * layer.mean_error).abs(), (layer.std * (layer.std_ratio - 1)).abs()


def enhancement(images: int, layers: int) -> Tensor:
    """Weight of every layer in the loss of every image, (images, layers): 2 for the image's own layer, else 1."""
    weights = torch.ones(images, layers)
    weights[torch.arange(images), torch.arange(images) % layers] = 2
    return weights
