"""Train the whole quantized network on images, with the float network as its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, fx

from dffg.config import FinetuneConfig
from dffg.graph.ends import columns
from dffg.graph.nodes import nodes_by_name, with_output
from dffg.machine.device import HOST, channels_last, device_of
from dffg.machine.memory import reused_memory
from dffg.quant.blocks import find_blocks
from dffg.quant.divergence import divergence
from dffg.quant.learned import anneal, confine_weights, learning_optimizer, where_rounded
from dffg.quant.learned_network import LearnedNetwork
from dffg.quant.parameters import Parameters
from dffg.storage.checkpoint import Checkpoint

_STATE = "finetuning"
_SAVE_SECONDS = 30
_EASIEST, _HARDEST = 0.01, 4.0
_NEAREST_MIX = 0.3


@reused_memory()
def finetune(
    float_module: fx.GraphModule,
    parameters: Parameters,
    images: Tensor,
    config: FinetuneConfig,
    progress: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Parameters:
    """Learn weights, scales and biases end to end from the answers of the float network, which is never changed.

        minimise  KL(softmax(teacher) || softmax(student)) + features * mean over blocks |student - teacher|^2 /
                                                                                         |teacher|^2

    Distillation (Hinton et al., 2015) with the results of all blocks as hints; roundings pass their gradient through.
    Images on which the student was far off are drawn more often (hard samples), and a share of every batch lies between
    two images, where classes meet (boundary samples; Qimera, Choi et al., NeurIPS 2021, mixes latents of a generator).
    images: (count, *shape) network inputs. progress: told the step and its loss. checkpoint: where the state is kept
    every half minute, and found if this was stopped before; the result is the same.
    """
    if not parameters.layers:
        return parameters
    torch.manual_seed(config.seed)
    images = channels_last(images.to(device_of(float_module)))
    network = LearnedNetwork(float_module, parameters, where_rounded, reach=config.reach)
    blocks, parts = [block.output for block in find_blocks(float_module)], columns(float_module).values()
    nodes = nodes_by_name(float_module)
    student, teacher = network.watched(blocks), with_output(float_module, [nodes[name] for name in blocks])
    optimizer = learning_optimizer(student, config.rates)
    hardness = torch.ones(len(images))
    done = 0 if checkpoint is None else _restore(checkpoint, network, optimizer, hardness)
    saved = time.monotonic()
    for step in range(done, config.iterations):
        anneal(optimizer, step / config.iterations)
        chosen = torch.multinomial(hardness, min(config.batch_size, len(images)))
        batch = with_boundary_samples(images[chosen], config.boundary)
        with torch.no_grad():
            expected = teacher(batch)
        answer = student(batch)
        apart = divergence(expected[-1], answer[-1], parts)
        loss = apart.mean() + config.features * feature_error(expected, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        confine_weights(student)
        hardness[chosen] = 1 - config.hard + config.hard * relative_hardness(apart.detach()).to(HOST)
        if checkpoint is not None and time.monotonic() - saved > _SAVE_SECONDS:
            _save(checkpoint, step + 1, network, optimizer, hardness)
            saved = time.monotonic()
        if progress is not None:
            progress(step, float(loss.detach()))
    return network.parameters()


def _save(
    checkpoint: Checkpoint, done: int, network: LearnedNetwork, optimizer: torch.optim.Optimizer, hardness: Tensor
) -> None:
    checkpoint.save(
        _STATE,
        {
            "done": done,
            "values": network.state(),
            "optimizer": optimizer.state_dict(),
            "hardness": hardness,
            "random": torch.get_rng_state(),
        },
    )


def _restore(
    checkpoint: Checkpoint, network: LearnedNetwork, optimizer: torch.optim.Optimizer, hardness: Tensor
) -> int:
    """Take over what was learned before; the number of steps that are done."""
    state = checkpoint.load(_STATE)
    if state is None:
        return 0
    network.load(state["values"])
    optimizer.load_state_dict(state["optimizer"])
    hardness.copy_(state["hardness"])
    torch.set_rng_state(state["random"])
    return int(state["done"])


def feature_error(expected: tuple[Tensor, ...], answer: tuple[Tensor, ...]) -> Tensor:
    """Mean over blocks of the squared error relative to the float result; those whose result is 0 are left out."""
    errors = [(a - e).square().mean() / e.square().mean() for e, a in zip(expected, answer) if e.any()]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def relative_hardness(apart: Tensor) -> Tensor:
    """How far off every example is beside the mean of its batch, from a hundredth of it to 4 times.

    A divergence of 0 may be rounded to less, and what is answered exactly can be drawn, too.
    """
    return (apart / apart.mean().clamp(min=1e-12)).clamp(_EASIEST, _HARDEST)


def with_boundary_samples(batch: Tensor, share: float) -> Tensor:
    """Replace this share of a batch by mixtures of two of its images, with 0.3 to 0.7 of either."""
    count = int(share * len(batch))
    if not count:
        return batch
    amount = _NEAREST_MIX + (1 - 2 * _NEAREST_MIX) * torch.rand(count, *[1] * (batch.dim() - 1)).to(batch.device)
    other = batch[torch.randperm(len(batch))[:count]]
    return torch.cat([torch.lerp(batch[:count], other, amount), batch[count:]])
