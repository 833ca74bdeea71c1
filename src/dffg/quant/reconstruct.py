"""Learn the rounding and the scales of a quantized network block by block, from images, without labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.config import ReconstructionConfig
from dffg.graph.nodes import CONVOLUTIONS, argument, calls, nodes_by_name
from dffg.machine.device import channels_last, device_of, has_fast_bfloat16, in_bfloat16
from dffg.machine.memory import reused_memory
from dffg.machine.replay import Replayed
from dffg.quant.blocks import Block, find_blocks, joined, work_of
from dffg.quant.learned import anneal, confine_weights, exchanged, learning_optimizer, where_weight_is
from dffg.quant.learned_network import LearnedNetwork, between
from dffg.quant.parameters import Parameters
from dffg.storage.checkpoint import Checkpoint

_BATCH = 64
_STATE = "reconstruction"
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


@reused_memory()
def reconstruct(
    float_module: fx.GraphModule,
    parameters: Parameters,
    images: Tensor,
    config: ReconstructionConfig,
    progress: Callable[[BlockRecord], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Parameters:
    """Learn rounding, scales and biases so that every block's result is that of the float network.

        minimise  |block(x) - float block(x_float)|^2 / |float block(x_float)|^2

    block by block in order of execution (BRECQ, Li et al., ICLR 2021). x is what the quantized network before gives,
    with a random share of its elements exchanged for those of the float network (QDrop, Wei et al., ICLR 2022). Scales
    are learned as in LSQ (Esser et al., ICLR 2020) and GENIE (Jeon et al., CVPR 2023). images: (count, *shape) network
    inputs, all kept in memory, with three results of a block for each, on the device on which `float_module` lies.

    checkpoint: where finished blocks are kept, and found if this was stopped before. Every block has a seed of its own,
    so that the result is the same.
    """
    if not parameters.layers:
        return parameters
    network = LearnedNetwork(float_module, parameters, where_weight_is, config.drop, config.reach)
    device = device_of(float_module)
    images = channels_last(images.to(device))
    blocks, nodes = joined(find_blocks(float_module), config.together), nodes_by_name(float_module)
    with torch.no_grad():
        exact, quantized = images, network.quantized(blocks[0].input, images)
    fast = has_fast_bfloat16(device) if config.bfloat16 is None else config.bfloat16
    clock = _Clock([work_of(float_module, block) for block in blocks], config.max_seconds)
    done = 0 if checkpoint is None else _restore(checkpoint, network)
    if done == len(blocks):
        return network.parameters()
    for index, block in enumerate(blocks):
        if index < done:
            exact = _run(between(float_module, block.input, block.output), exact)
            quantized = _run(network.block(block.input, block.output), quantized)
            continue
        torch.manual_seed(config.seed + index)
        started = time.perf_counter()
        learned = network.block(block.input, block.output)
        target = _run(between(float_module, block.input, block.output), exact)
        before = _error(_run(learned, quantized), target)
        narrow = fast and not any(strides_past(nodes[layer]) for layer in block.layers)
        first = {name: value.detach().clone() for name, value in learned.named_parameters()}
        iterations = _learn(learned, exact, quantized, target, config, clock.seconds_for(index), narrow)
        answer, after = _better(learned, first, quantized, target, before)
        exact, quantized = target, answer
        if progress is not None:
            record = BlockRecord(
                block=block,
                index=index,
                count=len(blocks),
                iterations=iterations,
                seconds=time.perf_counter() - started,
                error_before=before,
                error_after=after,
            )
            progress(record)
        if checkpoint is not None:
            checkpoint.save(_STATE, {"done": index + 1, "values": network.state()})
    return network.parameters()


def _restore(checkpoint: Checkpoint, network: LearnedNetwork) -> int:
    """Take over what was learned before; the number of blocks that are done."""
    state = checkpoint.load(_STATE)
    if state is None:
        return 0
    network.load(state["values"])
    return int(state["done"])


class _Clock:
    """Shares the time that is left among the blocks that are left, by the work of one step of each."""

    def __init__(self, work: list[int], seconds: float | None) -> None:
        self._work = work
        self._end = math.inf if seconds is None else time.perf_counter() + seconds

    def seconds_for(self, index: int) -> float:
        """Time of the next block."""
        share = self._work[index] / sum(self._work[index:])
        return max((self._end - time.perf_counter()) * share, _LEAST_SECONDS)


def _learn(
    learned: fx.GraphModule,
    exact: Tensor,
    quantized: Tensor,
    target: Tensor,
    config: ReconstructionConfig,
    seconds: float,
    narrow: bool,
) -> int:
    """Train a block for so many steps, or as many as there is time for; their number.

    A block whose float result is 0 everywhere is left as it is: any error is infinitely large beside it.
    """
    power = target.square().mean()
    if power == 0:
        return 0
    learned.train()
    optimizer = learning_optimizer(learned, config.rates)

    def step(chosen: Tensor) -> tuple[Tensor]:
        inputs = exchanged(quantized[chosen], exact[chosen], config.drop)
        with in_bfloat16(inputs.device, narrow):
            answer = learned(inputs.bfloat16() if narrow else inputs)
        loss = (answer.float() - target[chosen]).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        confine_weights(learned)
        return (loss.detach(),)

    replayed = Replayed(step)
    started = time.perf_counter()
    for iteration in range(config.iterations):
        progress = max(iteration / config.iterations, (time.perf_counter() - started) / seconds)
        if progress >= 1:
            return iteration
        anneal(optimizer, progress)
        (loss,) = replayed(torch.randint(len(target), (config.batch_size,)).to(target.device))
        float(loss)  # The clock must not run ahead of an accelerator.
    return config.iterations


def _better(
    learned: fx.GraphModule, first: dict[str, Tensor], quantized: Tensor, target: Tensor, before: float
) -> tuple[Tensor, float]:
    """A block's result and its error as learned, or as it was at `first` where it is no better now.

    Steps that round can throw a block that is as good as it gets, and there are such. What it gave before is computed
    again: kept, it would be a fourth result for every image in memory.
    """
    answer = _run(learned, quantized)
    after = _error(answer, target)
    if after < before:
        return answer, after
    learned.load_state_dict(first, strict=False)
    return _run(learned, quantized), before


def strides_past(layer: fx.Node) -> bool:
    """Whether a convolution's stride is larger than the width of its input.

    There oneDNN's gradient of the weight in bfloat16 reads memory that nobody has written (torch 2.14 on a processor
    with AMX: other numbers in every run, sometimes NaN; not with numbers of 32 bits).
    """
    if not calls(layer, *CONVOLUTIONS):
        return False
    stride, width = argument(layer, 3, [1])[-1], layer.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    return bool(stride > width)


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])


def _error(answer: Tensor, target: Tensor) -> float:
    return float((answer - target).square().sum() / target.square().sum())
