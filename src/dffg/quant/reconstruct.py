"""Learn the rounding and the scales of a quantized network block by block, from images, without labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.config import ReconstructionConfig
from dffg.quant.blocks import Block, find_blocks
from dffg.quant.learned import (
    LearnedNetwork,
    anneal,
    between,
    confine_weights,
    laid_out,
    learning_optimizer,
    random_mask,
    where_weight_is,
)
from dffg.quant.parameters import Parameters

_BATCH = 64
_LEAST_SECONDS = 1e-3


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What a block's learning did: relative error of its result before and after, on the images it learned from."""

    block: Block
    index: int
    count: int
    iterations: int
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
    network = LearnedNetwork(float_module, parameters, where_weight_is, config.drop, config.reach)
    images = laid_out(images)
    blocks = find_blocks(float_module)
    with torch.no_grad():
        exact, quantized = images, network.quantized(blocks[0].input, images)
    end = math.inf if config.max_seconds is None else time.perf_counter() + config.max_seconds
    for index, block in enumerate(blocks):
        started = time.perf_counter()
        learned = network.block(block.input, block.output)
        target = _run(between(float_module, block.input, block.output), exact)
        before = _error(_run(learned, quantized), target) if progress is not None else math.nan
        seconds = max((end - time.perf_counter()) / (len(blocks) - index), _LEAST_SECONDS)
        iterations = _learn(learned, exact, quantized, target, config, seconds)
        exact, quantized = target, _run(learned, quantized)
        if progress is not None:
            record = BlockRecord(
                block=block,
                index=index,
                count=len(blocks),
                iterations=iterations,
                seconds=time.perf_counter() - started,
                error_before=before,
                error_after=_error(quantized, target),
            )
            progress(record)
    return network.parameters()


def _learn(
    learned: fx.GraphModule,
    exact: Tensor,
    quantized: Tensor,
    target: Tensor,
    config: ReconstructionConfig,
    seconds: float,
) -> int:
    """Train a block for so many steps, or as many as there is time for; their number."""
    learned.train()
    optimizer = learning_optimizer(learned, config.rates)
    power = target.square().mean().clamp(min=1e-30)
    started = time.perf_counter()
    for iteration in range(config.iterations):
        progress = max(iteration / config.iterations, (time.perf_counter() - started) / seconds)
        if progress >= 1:
            return iteration
        anneal(optimizer, progress)
        chosen = torch.randint(len(target), (config.batch_size,))
        inputs = quantized[chosen]
        inputs = torch.where(random_mask(inputs, config.drop), exact[chosen], inputs)
        loss = (learned(inputs) - target[chosen]).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        confine_weights(learned)
    return config.iterations


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])


def _error(answer: Tensor, target: Tensor) -> float:
    return float((answer - target).square().sum() / target.square().sum())
