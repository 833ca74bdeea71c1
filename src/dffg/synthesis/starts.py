"""Where chains start: at noise, or at pictures of nothing that share the statistics of photographs.

Random numbers are drawn on the CPU, so that they are the same for every device; what is made of them, where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dffg.bounds import input_bounds
from dffg.config import SynthesisConfig
from dffg.machine.device import HOST
from dffg.spec import ImageSpec

Start = Callable[[SynthesisConfig, ImageSpec, torch.Generator, torch.device], Tensor]

_LEAVES = 96
_SMALLEST, _LARGEST = 0.04, 0.6  # Radius of a leaf, as a share of the picture.
_CONTRAST, _CHROMA = 0.3, 0.5  # Deviation of the grays around the middle, and that of every channel beside it.
_SHADE = 0.15  # Deviation of a leaf's gray from its middle to its edge.
_TEXTURE = 0.06  # Deviation of the pink noise over the leaves.
_CLOUDS = 0.25  # Deviation of pink noise that is a picture of its own.


def start_from_noise(
    config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator, device: torch.device = HOST
) -> Tensor:
    """Normal noise around the middle of the bounds, clipped to them: (batch_size, *spec.shape)."""
    low, high = input_bounds(spec, device)
    noise = torch.randn(config.batch_size, *spec.shape, generator=generator).to(device)
    return torch.clamp((low + high) / 2 + config.start_std * (high - low) * noise, low, high)


def start_from_pictures(
    config: SynthesisConfig, spec: ImageSpec, generator: torch.Generator, device: torch.device = HOST
) -> Tensor:
    """Half dead leaves and half pink noise, (batch_size, *spec.shape); for other than flat pictures, noise.

    Edges at all places and sizes, and amplitudes that fall with the frequency, are what all photographs have in common
    and white noise has not. Baradad et al., "Learning to See by Looking at Noise" (NeurIPS 2021), train networks on
    such pictures in place of photographs.
    """
    if not spec.is_pixels or math.prod(spec.shape[1:]) == 1:
        return start_from_noise(config, spec, generator, device)
    low, high = input_bounds(spec, device)
    leaves = config.batch_size - config.batch_size // 2
    pictures = torch.cat(
        [
            dead_leaves(leaves, spec.shape, generator, device),
            0.5 + _CLOUDS * _colored(config.batch_size - leaves, spec.shape, generator, device),
        ]
    )
    return low + (high - low) * pictures.clamp_(0, 1)


def dead_leaves(count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device = HOST) -> Tensor:
    """Disks and boxes that cover each other, their sizes r by a density of r^-3: (count, channels, height, width).

    Lee, Mumford and Huang, "Occlusion Models for Natural Images" (IJCV 2001). Gray levels are around 0.5 and may leave
    the interval from 0 to 1.
    """
    channels, height, width = shape
    down = torch.linspace(0, 1, height, device=device)[:, None]
    right = torch.linspace(0, 1, width, device=device)

    def drawn() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator)

    pictures = _shades(count, channels, generator).to(device).expand(count, *shape)
    for _ in range(_LEAVES):
        # The inverse of the distribution function of r^-3 between the smallest and the largest.
        radius = torch.lerp(torch.tensor(_SMALLEST**-2), torch.tensor(_LARGEST**-2), drawn()).rsqrt().to(device)
        angle, aspect = (math.pi * drawn()).to(device), (0.4 + 0.6 * drawn()).to(device)
        y, x = down - drawn().to(device), right - drawn().to(device)
        along = (x * angle.cos() + y * angle.sin()) / radius
        across = (y * angle.cos() - x * angle.sin()) / (radius * aspect)
        is_box = drawn().to(device) < 0.5
        distance = torch.where(is_box, torch.maximum(along.abs(), across.abs()), torch.hypot(along, across))
        shading = (_SHADE * torch.randn(count, 1, 1, generator=generator)).to(device) * along
        leaf = _shades(count, channels, generator).to(device) + shading[:, None]
        pictures = torch.where((distance < 1)[:, None], leaf, pictures)
    return pictures + _TEXTURE * pink_noise(count, shape, generator, device)


def pink_noise(count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device = HOST) -> Tensor:
    """Noise whose amplitudes fall as 1 / frequency, of deviation 1 in every channel: (count, *shape)."""
    height, width = shape[-2:]
    spectrum = torch.fft.rfft2(torch.randn(count, *shape, generator=generator).to(device))
    frequency = torch.hypot(torch.fft.fftfreq(height, device=device)[:, None], torch.fft.rfftfreq(width, device=device))
    noise: Tensor = torch.fft.irfft2(spectrum / frequency.clamp(min=1 / max(height, width)), s=(height, width))
    return noise / noise.std((-2, -1), keepdim=True)


def _colored(count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Pink noise with the same in all channels, as most of what is seen is gray, and a smaller part in each."""
    gray = pink_noise(count, (1, *shape[1:]), generator, device)
    return gray + _CHROMA * pink_noise(count, shape, generator, device)


def _shades(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """One color for every picture: (count, channels, 1, 1)."""
    gray = torch.randn(count, 1, 1, 1, generator=generator)
    return 0.5 + _CONTRAST * (gray + _CHROMA * torch.randn(count, channels, 1, 1, generator=generator))


STARTS: dict[str, Start] = {"noise": start_from_noise, "pictures": start_from_pictures}
