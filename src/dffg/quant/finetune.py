"""Train the whole quantized network on images, with the float network as the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dffg.config import FinetuneConfig
from dffg.quant.blocks import find_blocks
from dffg.quant.learned import LearnedNetwork, Rates, learning_optimizer, where_rounded
from dffg.quant.parameters import Parameters


def finetune(
    float_module: fx.GraphModule,
    parameters: Parameters,
    images: Tensor,
    config: FinetuneConfig,
    progress: Callable[[int, float], None] | None = None,
) -> Parameters:
    """Learn weights, scales and biases end to end from the answers of the float network, which is never changed."""
    torch.manual_seed(config.seed)
    network = LearnedNetwork(float_module, parameters, where_rounded)
    names = [block.output for block in find_blocks(float_module)]
    student, teacher = network.watched(names), _watched(float_module, names)
    images = images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
    rates = Rates(weight=config.weight_rate, scale=config.scale_rate, bias=config.bias_rate)
    optimizer = learning_optimizer(network.module, rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    hardness = torch.ones(len(images))
    for iteration in range(config.iterations):
        chosen = torch.multinomial(hardness, config.batch_size)
        batch = images[chosen]
        batch = _with_boundary(batch, config.boundary)
        with torch.no_grad():
            expected = teacher(batch)
        answer = student(batch)
        divergence = F.kl_div(
            F.log_softmax(answer[-1], 1), F.log_softmax(expected[-1], 1), log_target=True, reduction="none"
        ).sum(1)
        features = torch.stack([(a - e).square().mean() / e.square().mean() for a, e in zip(answer, expected)]).mean()
        loss = divergence.mean() + config.features * features
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if config.hard:
            hardness[chosen] = (1 - config.hard) + config.hard * (
                divergence.detach() / divergence.detach().mean().clamp(min=1e-12)
            ).clamp(max=4)
        if progress is not None:
            progress(iteration, float(loss))
    return network.parameters()


def _with_boundary(batch: Tensor, share: float) -> Tensor:
    count = int(share * len(batch))
    if not count:
        return batch
    mixed = batch.clone()
    weight = 0.3 + 0.4 * torch.rand(count, *[1] * (batch.dim() - 1))
    mixed[:count] = weight * batch[:count] + (1 - weight) * batch[torch.randperm(len(batch))[:count]]
    return mixed


def _watched(module, names):
    from dffg.graph import with_output

    nodes = {node.name: node for node in module.graph.nodes}
    return with_output(module, [nodes[n] for n in names])
