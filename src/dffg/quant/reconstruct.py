"""Learn the rounding and the scales of a quantized network block by block, from images, without labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.config import ReconstructionConfig
from dffg.quant.blocks import Block, find_blocks
from dffg.quant.learned import LearnedNetwork, LearnedWeight, between, random_mask
from dffg.quant.parameters import Parameters

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What a block's learning did: relative error of its result before and after, on the images it learned from."""

    block: Block
    seconds: float
    error_before: float
    error_after: float


def reconstruct(
    float_module: fx.GraphModule,
    parameters: Parameters,
    images: Tensor,
    config: ReconstructionConfig,
    progress: Callable[[BlockRecord], None] | None = None,
) -> Parameters:
    """Learn rounding, scales and biases so that every block's result is that of the float network.

        minimise  |block(x) - float block(x_float)|^2 / |float block(x_float)|^2 + penalty * undecided rounding

    block by block in order of execution (BRECQ, Li et al., ICLR 2021). x is what the quantized network before gives,
    with a random half of its elements exchanged for those of the float network (QDrop, Wei et al., ICLR 2022). Rounding
    is AdaRound's, scales are learned as in LSQ and GENIE. `images`: (count, *shape) network inputs, all kept in memory.
    """
    torch.manual_seed(config.seed)
    network = LearnedNetwork(float_module, parameters, config.drop)
    images = _laid_out(images)
    blocks = find_blocks(float_module)
    with torch.no_grad():
        exact, quantized = images, network.quantized(blocks[0].input, images)
    for block in blocks:
        started = time.perf_counter()
        learned = network.block(block.input, block.output)
        target = _run(between(float_module, block.input, block.output), exact)
        before = _error(_run(learned, quantized), target)
        _learn(learned, exact, quantized, target, config)
        exact, quantized = target, _run(learned, quantized)
        if progress is not None:
            record = BlockRecord(
                block=block,
                seconds=time.perf_counter() - started,
                error_before=before,
                error_after=_error(quantized, target),
            )
            progress(record)
    return network.parameters()


def _learn(learned: fx.GraphModule, exact: Tensor, quantized: Tensor, target: Tensor, config: ReconstructionConfig) -> None:
    learned.train()
    weights = [module for module in learned.modules() if isinstance(module, LearnedWeight)]
    optimizer = _optimizer(learned, config)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    power = target.square().mean()
    for iteration in range(config.iterations):
        chosen = torch.randint(len(target), (config.batch_size,))
        inputs = quantized[chosen]
        inputs = torch.where(random_mask(inputs, config.drop), exact[chosen], inputs)
        loss = (learned(inputs) - target[chosen]).square().mean() / power
        sharpness = _sharpness(iteration / config.iterations, config)
        if sharpness is not None:
            loss = loss + config.penalty * torch.stack([weight.undecided(sharpness) for weight in weights]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learned.eval()
    for weight in weights:
        weight.harden()


def _optimizer(learned: fx.GraphModule, config: ReconstructionConfig) -> torch.optim.Optimizer:
    rates = {"v": config.rounding_rate, "stretch": config.scale_rate, "shift": config.bias_rate}
    groups = {name: [p for path, p in learned.named_parameters() if path.rpartition(".")[2] == name] for name in rates}
    return torch.optim.Adam([{"params": params, "lr": rates[name]} for name, params in groups.items() if params])


def _sharpness(progress: float, config: ReconstructionConfig) -> float | None:
    """Exponent of the penalty: none at first, then from 20, which only touches the nearly decided, down to 2."""
    if progress < config.warm_up:
        return None
    return 2 + 18 * (1 - (progress - config.warm_up) / (1 - config.warm_up))


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])


def _error(answer: Tensor, target: Tensor) -> float:
    return float((answer - target).square().sum() / target.square().sum())


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
