import math

import pytest
import torch

from dffg.config import SynthesisConfig
from dffg.images import ImageSpec
from dffg.starts import STARTS, dead_leaves, pink_noise, start_from_noise, start_from_pictures

PICTURES = ImageSpec(shape=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(**options):
    return SynthesisConfig(batch_size=16, **options)


def slope(images):
    """Exponent of the amplitude over the frequency, fitted between two cycles and half of what a picture can hold."""
    size = images.shape[-1]
    amplitude = torch.fft.rfft2(images).abs().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)) * size
    inside = (frequency >= 2) & (frequency <= size / 4)
    x, y = frequency[inside].log(), amplitude[inside].log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("name", STARTS)
def test_a_start_lies_within_the_bounds_and_depends_on_the_generator_alone(name):
    start = STARTS[name]
    images = start(config(), PICTURES, generator())
    low, high = (torch.from_numpy(bound) for bound in PICTURES.input_bounds())
    assert images.shape == (16, 3, 32, 32)
    assert (images >= low - 1e-6).all()
    assert (images <= high + 1e-6).all()
    assert torch.equal(images, start(config(), PICTURES, generator()))
    assert not torch.equal(images, start(config(), PICTURES, generator(1)))


def test_amplitudes_fall_with_the_frequency_as_in_photographs():
    assert slope(pink_noise(64, (3, 64, 64), generator())) == pytest.approx(-1, abs=0.05)
    assert slope(dead_leaves(64, (3, 64, 64), generator())) == pytest.approx(-1.2, abs=0.3)
    assert slope(torch.randn(64, 3, 64, 64, generator=generator())) == pytest.approx(0, abs=0.05)


def test_pink_noise_has_deviation_one_in_every_channel():
    noise = pink_noise(4, (3, 33, 20), generator())
    assert noise.shape == (4, 3, 33, 20)
    assert torch.allclose(noise.std((-2, -1)), torch.ones(4, 3), atol=1e-4)


def test_leaves_have_edges_and_flat_parts():
    """Differences of neighbors are small nearly everywhere and large at edges: far from normal, kurtosis 3."""
    steps = dead_leaves(32, (1, 64, 64), generator()).diff(dim=-1)
    assert (steps - steps.mean()).pow(4).mean() / steps.var().square() > 8


def test_leaves_cover_each_other_anywhere_in_the_picture():
    """Means of quarters are alike: no place is preferred."""
    pictures = dead_leaves(256, (1, 32, 32), generator())
    quarters = pictures.unfold(2, 16, 16).unfold(3, 16, 16).mean((0, 1, 4, 5))
    spread = pictures.mean((1, 2, 3)).std() / math.sqrt(256)
    assert (quarters - 0.5).abs().max() < 6 * spread


def test_half_of_the_pictures_are_leaves():
    images = start_from_pictures(config(), ImageSpec(shape=(1, 64, 64), mean=(0.0,), std=(1.0,)), generator())
    steps = images.diff(dim=-1).flatten(1)
    peaked = (steps - steps.mean(1, keepdim=True)).pow(4).mean(1) / steps.var(1).square()
    assert (peaked[:8] > 5).all()
    assert (peaked[8:] < 5).all()


@pytest.mark.parametrize(
    "spec", [ImageSpec(shape=(1, 49, 10), bounds=(-130.0, 30.0)), ImageSpec(shape=(3, 8, 8, 8)), ImageSpec(shape=(5,))]
)
def test_what_is_no_picture_starts_from_noise(spec):
    assert torch.equal(start_from_pictures(config(), spec, generator()), start_from_noise(config(), spec, generator()))
