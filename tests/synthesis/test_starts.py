import pytest
import torch

from dffg.config import SynthesisConfig
from dffg.spec import ImageSpec
from dffg.synthesis.starts import STARTS, dead_leaves, pink_noise, start_from_noise, start_from_pictures

PICTURES = ImageSpec(shape=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


WIDE = ImageSpec(shape=(3, 32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


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
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 9), (3, 9, 1)], ids=str)
def test_pictures_of_one_pixel_or_one_row_differ_and_are_numbers(name, shape):
    images = STARTS[name](config(), ImageSpec(shape=shape), generator())
    assert images.isfinite().all()
    assert len(images.unique(dim=0)) == 16


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


def test_no_part_of_a_leaf_is_quite_flat():
    assert (dead_leaves(4, (3, 32, 32), generator()).diff(dim=-1) == 0).float().mean() < 1e-3


def test_leaves_lie_anywhere_in_the_picture():
    """In every quarter there are as many edges."""
    edges = (dead_leaves(256, (1, 32, 32), generator()).diff(dim=-1).abs() > 0.2).float()[..., :30]
    quarters = edges.unfold(2, 16, 16).unfold(3, 15, 15).mean((0, 1, 4, 5))
    assert quarters.max() < 1.1 * quarters.min()


def test_many_leaves_are_small_and_few_large():
    """Runs of one gray along a row: short ones are many, and some are half as wide as the picture."""
    flat = (dead_leaves(64, (1, 64, 64), generator()).diff(dim=-1).abs() < 0.1).reshape(-1, 63)
    lengths = torch.tensor(
        [len(run) for row in flat.tolist() for run in "".join(map("01".__getitem__, row)).split("0")]
    )
    assert 4 < lengths[lengths > 0].float().mean() < 10
    assert 0.002 < (lengths > 32).float().mean() < 0.05


def test_colors_are_mostly_gray():
    """Channels of a picture share most of their variance, not all: 1 / (1 + 0.5^2)."""
    for pictures in (dead_leaves(64, (3, 32, 32), generator()), start_from_pictures(config(), WIDE, generator())[8:]):
        channels = pictures.transpose(0, 1).flatten(1)
        assert torch.corrcoef(channels)[0, 1:].tolist() == pytest.approx([0.8, 0.8], abs=0.05)


def test_pictures_lie_around_the_middle_of_the_bounds():
    images = start_from_pictures(SynthesisConfig(batch_size=512), WIDE, generator())
    assert images[:256].mean() == pytest.approx(0.5, abs=0.02)
    assert images[256:].mean() == pytest.approx(0.5, abs=0.02)


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
