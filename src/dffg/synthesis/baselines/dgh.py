"""DGH (Dikstein et al., WACV 2025) as in Sony's MCT: statistics over the whole set, smooth pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.machine.device import HOST, channels_last
from dffg.spec import ImageSpec
from dffg.synthesis.chain import Visit, chain_generator
from dffg.synthesis.probe import LayerStatistics, Probe

LEARNING_RATE = 16.0
PLATEAU_FACTOR, PLATEAUS, LOWEST_RATE = 0.5, 50, 1e-4
STRETCH = 1e-5
SIGMA = 1.25
EPS = 1e-6
CANVAS_SHARE = 7


def run_chain(captured: Captured, config: SynthesisConfig, chain: int) -> Iterator[Visit]:
    """RAdam on the statistics of all images together: one chain makes the whole set, `config.count` images.

        loss = mean over layers of ( |m - running_mean|^2 + |s - sd|^2 ) / channels
               - 1e-5 * mean over images of (highest - lowest value of the answer)

    in the network's own units; m and s are of the whole set. The input is one more layer, of mean 0 and deviation 1,
    not divided by its channels. The set is walked in batches, in random order: every batch sees its own moments and
    those that the others left when they were last looked at. What is optimized is a canvas larger than the input (by 32
    pixels at 224, in proportion elsewhere), in normalized units. Every pass flips it half of the time, smooths it with
    a 3x3 Gaussian (sigma 1.25), crops it at random and clips it to the legal pixels; gradients pass the clipping as if
    it were not there, and the canvas itself is free. Handed out is the canvas smoothed, cropped at the center and
    clipped. RAdam at 16, every batch its own, halved when the batch's loss has not fallen for steps / 50, down to 1e-4,
    which then forgets what was best; 500 iterations, batches of 32, a start from N(0, 1). Constants: MCT's defaults.
    The authors' research code weighs deviations tenfold and makes 1000 iterations.

    We differ: batches count by their size (MCT: equally), no mixed precision, edges are replicated in smoothing; a
    batch leaves the moments that it had before its step (MCT looks a second time, after it, which doubles the forward
    passes); the canvas is a seventh larger (MCT: 32 pixels and its crop's 32 at any size); channels that BatchNorm
    multiplies by 0 are left out. Inputs that are not pictures have no canvas and are only clipped.

    RAdam's first five updates are not adaptive and hardly move the images, so that fewer steps than about 16 are noise.

    A visit is one pass of every batch, its loss their mean; chain numbers beyond 0 would make further whole sets.
    """
    generator = chain_generator(config.seed, chain)
    joint = JointWalk(captured, config, generator)
    for step in range(config.steps):
        images, losses = joint.images(), []
        for index in torch.randperm(len(joint), generator=generator).tolist():
            losses.append(joint.walk(index, move=step < config.steps - 1))
        yield Visit(images=images, step=step, loss=sum(losses) / len(losses))


class JointWalk:
    """Batches of canvases, each with its optimizer, and the moments that each has left."""

    def __init__(self, captured: Captured, config: SynthesisConfig, generator: torch.Generator) -> None:
        self._probe = Probe(captured)
        self._view = View(captured.spec, generator, captured.device)
        start = torch.randn(config.count, *self._view.canvas_shape, generator=generator).to(captured.device)
        self._canvases = [channels_last(batch).requires_grad_(True) for batch in start.split(config.batch_size)]
        self._optimizers = [torch.optim.RAdam([canvas], lr=LEARNING_RATE) for canvas in self._canvases]
        self._schedules = [ForgetfulPlateau(optimizer, config.steps // PLATEAUS) for optimizer in self._optimizers]
        shares = [len(canvas) / config.count for canvas in self._canvases]
        self._shares = torch.tensor(shares, device=captured.device)
        with torch.no_grad():
            self._left = [self._look(self._view.center(canvas))[0] for canvas in self._canvases]

    def __len__(self) -> int:
        return len(self._canvases)

    def images(self) -> Tensor:
        """All images as they would be handed out now."""
        with torch.no_grad():
            return torch.cat([self._view.center(canvas) for canvas in self._canvases])

    def walk(self, index: int, *, move: bool) -> float:
        """Look at one batch, leave its moments and take one step; its loss."""
        optimizer = self._optimizers[index]
        optimizer.zero_grad()
        layers, answer = self._look(self._view.random(self._canvases[index]))
        own = [*self._left]
        own[index] = layers
        loss = statistics_loss(pooled(own, self._shares)) - STRETCH * stretch(answer)
        self._left[index] = [detached(layer) for layer in layers]
        if move:
            loss.backward()
            optimizer.step()
            self._schedules[index].step(float(loss.detach()))
        return float(loss.detach())

    def _look(self, images: Tensor) -> tuple[list[LayerStatistics], Tensor]:
        """Statistics of the input and of every layer, and the answer."""
        layers, answer = self._probe.with_answer(images)
        return [input_layer(images), *layers], answer


def input_layer(images: Tensor) -> LayerStatistics:
    """The input as a layer that remembers mean 0 and deviation 1."""
    var, mean = torch.var_mean(images.transpose(0, 1).flatten(1), dim=1, correction=0)
    ones = torch.ones_like(mean)
    return LayerStatistics(mean_error=mean, std_ratio=(var + EPS).sqrt(), std=ones, live=ones)


def pooled(batches: Sequence[Sequence[LayerStatistics]], shares: Tensor) -> list[LayerStatistics]:
    """Statistics of all batches joined, layer by layer; `shares` of the images, (batches,), sum to 1.

    mean_error  = sum_b share_b * mean_error_b
    std_ratio^2 = sum_b share_b * (std_ratio_b^2 + (mean_error_b - mean_error)^2)
    """
    return [join(layers, shares[:, None]) for layers in zip(*batches, strict=True)]


def join(layers: Sequence[LayerStatistics], shares: Tensor) -> LayerStatistics:
    """One layer of `pooled`. Spreads are added, as a difference of second moments would cancel."""
    errors = torch.stack([layer.mean_error for layer in layers])
    ratios = torch.stack([layer.std_ratio for layer in layers])
    mean_error = (shares * errors).sum(0)
    variance = (shares * (ratios.square() + (errors - mean_error).square())).sum(0)
    return LayerStatistics(mean_error=mean_error, std_ratio=variance.sqrt(), std=layers[0].std, live=layers[0].live)


def detached(layer: LayerStatistics) -> LayerStatistics:
    """The same numbers without their history."""
    return LayerStatistics(
        mean_error=layer.mean_error.detach(), std_ratio=layer.std_ratio.detach(), std=layer.std, live=layer.live
    )


def statistics_loss(layers: Sequence[LayerStatistics]) -> Tensor:
    """Mean over layers, the input first, of the mean over channels of squared errors; of the input, the sum."""
    errors = [
        (layer.std * layer.mean_error).square() + (layer.std * (layer.std_ratio - 1)).square() for layer in layers
    ]
    return torch.stack([errors[0].sum(), *(error.mean() for error in errors[1:])]).mean()


def stretch(answer: Tensor) -> Tensor:
    """How far an answer reaches from its lowest to its highest value, averaged over images."""
    low, high = answer.flatten(1).aminmax(dim=1)
    return (high - low).mean()


class View:
    """How a canvas becomes network input."""

    def __init__(self, spec: ImageSpec, generator: torch.Generator, device: torch.device = HOST) -> None:
        self._shape = spec.shape
        self._are_pictures = spec.is_pixels
        self._bounds = input_bounds(spec, device)
        self._generator = generator

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        """One canvas: the input and, for pictures, a seventh more in height and width."""
        if not self._are_pictures:
            return self._shape
        return self._shape[0], *(size + round(size / CANVAS_SHARE) for size in self._shape[1:])

    def random(self, canvas: Tensor) -> Tensor:
        """What a pass sees, differentiable: flipped, smoothed and cropped at random, clipped as if it were not."""
        view = canvas
        if self._are_pictures:
            mirrored = torch.rand((), generator=self._generator) < 0.5
            view = self._crop(smooth(canvas.flip(-1) if mirrored else canvas), self._random_corner())
        return view + (torch.clamp(view, *self._bounds) - view).detach()

    def center(self, canvas: Tensor) -> Tensor:
        """What is handed out: smoothed, cropped at the center, clipped."""
        view = canvas
        if self._are_pictures:
            view = self._crop(smooth(canvas), [room // 2 for room in self._room()])
        return torch.clamp(view, *self._bounds)

    def _room(self) -> list[int]:
        return [canvas - size for canvas, size in zip(self.canvas_shape[1:], self._shape[1:], strict=True)]

    def _random_corner(self) -> list[int]:
        return [int(torch.randint(room + 1, (), generator=self._generator)) for room in self._room()]

    def _crop(self, canvas: Tensor, corner: Sequence[int]) -> Tensor:
        (top, left), (height, width) = corner, self._shape[1:]
        return canvas[..., top : top + height, left : left + width]


def smooth(images: Tensor) -> Tensor:
    """Blur (batch, channels, height, width) with a 3x3 Gaussian, edges replicated."""
    channels = images.shape[1]
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=images.device) / (2 * SIGMA**2))
    kernel = torch.outer(line, line) / line.sum().square()
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


class ForgetfulPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Halves the rate on a plateau, and then takes the next loss for the best so far."""

    def __init__(self, optimizer: torch.optim.Optimizer, patience: int) -> None:
        super().__init__(optimizer, factor=PLATEAU_FACTOR, patience=patience, min_lr=LOWEST_RATE)

    def step(self, metrics: float) -> None:  # type: ignore[override]
        """One loss."""
        before = self.optimizer.param_groups[0]["lr"]
        super().step(metrics)
        if self.optimizer.param_groups[0]["lr"] < before:
            self.best = math.inf
