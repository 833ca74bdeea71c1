"""Learn the rounding and the scales of a quantized network block by block, from images, without labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.config import ReconstructionConfig
from dffg.quant.blocks import Block, find_blocks
from dffg.quant.learned import (
    LearnedNetwork,
    Rates,
    between,
    laid_out,
    learning_optimizer,
    random_mask,
    where_weight_is,
)
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

        minimise  |block(x) - float block(x_float)|^2 / |float block(x_float)|^2

    block by block in order of execution (BRECQ, Li et al., ICLR 2021). x is what the quantized network before gives,
    with a random share of its elements exchanged for those of the float network (QDrop, Wei et al., ICLR 2022). Scales
    are learned as in LSQ (Esser et al., ICLR 2020) and GENIE (Jeon et al., CVPR 2023). images: (count, *shape) network
    inputs, all kept in memory, with three results of a block for each.
    """
    torch.manual_seed(config.seed)
    network = LearnedNetwork(float_module, parameters, where_weight_is, config.drop)
    images = laid_out(images)
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


def _learn(
    learned: fx.GraphModule, exact: Tensor, quantized: Tensor, target: Tensor, config: ReconstructionConfig
) -> None:
    learned.train()
    rates = Rates(weight=config.weight_rate, scale=config.scale_rate, bias=config.bias_rate)
    optimizer = learning_optimizer(learned, rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    power = target.square().mean()
    for _ in range(config.iterations):
        chosen = torch.randint(len(target), (config.batch_size,))
        inputs = quantized[chosen]
        inputs = torch.where(random_mask(inputs, config.drop), exact[chosen], inputs)
        loss = (learned(inputs) - target[chosen]).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])


def _error(answer: Tensor, target: Tensor) -> float:
    return float((answer - target).square().sum() / target.square().sum())
