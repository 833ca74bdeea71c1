"""GENIE-D (Jeon et al., CVPR 2023): latents and a small generator learned together, seen through swinging strides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dffg.config import SynthesisConfig
from dffg.errors import InputError
from dffg.graph.captured import Captured
from dffg.graph.nodes import CONVOLUTIONS, argument, calls
from dffg.machine.device import channels_last
from dffg.synthesis.baselines.descent import per_image_norm, step_schedule
from dffg.synthesis.baselines.zeroq import input_terms
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.probe import Probe

LATENTS, WIDTH = 256, 128
LATENT_RATE, GENERATOR_RATE = 0.1, 0.01
DECAY, DECAY_EVERY = 0.95, 100
PLATEAU_PATIENCE, PLATEAU_FACTOR, LOWEST_RATE = 100, 0.1, 1e-4


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """Adam on latents (0.1) and on the weights of a generator (0.01).

        loss = sum_i ( |m_i - running_mean_i|^2 + |s_i - sd_i|^2 ) / channels_i   + ZeroQ's input term

    over the batch, in the network's own units, the input term for every image alone; no classes. The rate of the
    weights is multiplied by 0.95 every 100 iterations, that of the latents by 0.1 on a plateau of 100. Strided
    convolutions see their input shifted at random by up to one position, anew in every pass (`swing`). The generator
    ends in a tanh and a BatchNorm, so that the batch has mean 0 and standard deviation 1 and is not clipped to the
    pixels. 256 latents, 128 images, 4000 iterations.
    Constants: the authors' code as described in the literature, which also swaps the two rates in one place.

    We differ: layers have the biased variance, and channels that BatchNorm multiplies by 0 are left out. Inputs of any
    number of axes are made as pictures and reshaped.

    Raises `InputError` for batches of one, which have no batch statistics for the generator to normalize with.
    """
    if config.batch_size < 2:
        raise InputError("batch_size is 1; genie's generator normalizes over the batch, choose at least 2.")
    generator = chain_generator(config.seed, chain)
    probe = Probe(captured, change=lambda module: swing_strided_(module, generator))
    maker = Maker(captured.spec.shape, generator).to(captured.device)
    latents = torch.randn(config.batch_size, LATENTS, generator=generator).to(captured.device).requires_grad_(True)
    optimizers = [torch.optim.Adam([latents], lr=LATENT_RATE), torch.optim.Adam(maker.parameters(), lr=GENERATOR_RATE)]
    schedules = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizers[0], factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE, min_lr=LOWEST_RATE
        ),
        torch.optim.lr_scheduler.StepLR(optimizers[1], DECAY_EVERY, DECAY),
    ]
    for step in range(config.steps):
        images = maker(latents)
        loss = statistics_loss(probe, images)
        yield Visit(images=images.detach(), step=step, loss=float(loss.detach()))
        if step < config.steps - 1:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                step_schedule(schedule, float(loss.detach()))


def statistics_loss(probe: Probe, images: Tensor) -> Tensor:
    """Mean squared errors of mean and standard deviation over channels, summed over layers, and the input term."""
    losses = [per_image_norm(input_terms(images))]
    for layer in probe(images):
        errors = (layer.std * layer.mean_error, layer.std * (layer.std_ratio - 1))
        losses += [error.square().mean() for error in errors]
    return torch.stack(losses).sum()


class Maker(nn.Module):
    """Latents (batch, 256) -> images (batch, *shape) of mean 0 and standard deviation 1 per channel.

    A linear layer makes 128 maps of a quarter of the size, which are normalized; they are doubled, convolved to 64,
    normalized and bent, and doubled and convolved to pixels. The rest is cut off where the size is not divisible by 4.
    """

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self._shape = tuple(shape)
        self._size = (shape[1] if len(shape) > 1 else 1, prod(shape[2:]))
        self._small = tuple(ceil(size / 4) for size in self._size)
        self.begin = linear(LATENTS, WIDTH * prod(self._small), generator)
        self.begin_norm = nn.BatchNorm2d(WIDTH)
        self.middle = convolution(WIDTH, WIDTH // 2, generator)
        self.middle_norm = nn.BatchNorm2d(WIDTH // 2)
        self.end = convolution(WIDTH // 2, shape[0], generator)
        self.end_norm = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Images of these latents."""
        x = channels_last(self.begin(latents).unflatten(1, (WIDTH, *self._small)))
        x = bend(self.middle_norm(self.middle(double(self.begin_norm(x)))))
        height, width = self._size
        x = torch.tanh(self.end(double(x))[..., :height, :width])
        return channels_last(self.end_norm(x).reshape(-1, *self._shape))


def bend(x: Tensor) -> Tensor:
    """The generator's activation function."""
    return F.leaky_relu(x, 0.2)


def double(x: Tensor) -> Tensor:
    """Twice the height and width, every value four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def convolution(channels: int, out_channels: int, generator: torch.Generator) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, out_channels, 3, padding=1)
    draw_weights_(layer, generator)
    return layer


def linear(features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    """A fully connected layer."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, features, out_features)
    draw_weights_(layer, generator)
    return layer


def draw_weights_(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Fill in place with what torch draws for a new layer, U(-1, 1) / sqrt(fan in), from a generator of ours."""
    bound = layer.weight[0].numel() ** -0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)


def swing(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift (batch, channels, ...) by -1, 0 or 1 along every axis: pad by one in reflection, crop at random.

    A strided convolution otherwise looks at the same phase of its input in every pass, and gradients reach the other
    positions less: the checkerboard that made images are known for. An axis with nothing to reflect stays.
    """
    sizes = x.shape[2:]
    pads = [int(size > 1) for size in sizes]
    x = F.pad(x, [pad for pad in reversed(pads) for _ in range(2)], mode="reflect")
    for axis, (size, pad) in enumerate(zip(sizes, pads, strict=True), start=2):
        x = x.narrow(axis, int(torch.randint(2 * pad + 1, (), generator=generator)), size)
    return x


def swing_strided_(module: fx.GraphModule, generator: torch.Generator) -> None:
    """Put `swing` before every strided convolution of a graph, in place; every call of it draws anew."""

    def drawn_swing(x: Tensor) -> Tensor:
        return swing(x, generator)

    for node in module.graph.nodes:
        if calls(node, *CONVOLUTIONS) and max(argument(node, 3, [1])) > 1:
            with module.graph.inserting_before(node):
                node.update_arg(0, module.graph.call_function(drawn_swing, (node.args[0],)))
