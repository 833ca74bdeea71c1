"""Networks at the edge of what is one, from module to verified file: a good result or a refusal, never nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import CaptureError, InputError
from dffg.export.onnxruntime import run
from dffg.pipeline.steps import quantize
from tests.networks import BatchNorm, inputs, randomize, small_conv

SHAPE = (3, 8, 8)
QUICK = SynthesisConfig(count=8, batch_size=4, steps=4)
LEARNED = {
    "quantization": QuantizationConfig(bits="W4A8"),
    "learning": LearningConfig(learning_images=8, reconstruction_steps=4, finetune_steps=2),
}


def with_norms(change: Callable[[BatchNorm], object]) -> nn.Module:
    """A small network with this done to every BatchNorm."""
    model = randomize(small_conv())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                change(module)
    return model


def chain(layers: int) -> nn.Module:
    """So many small layers, one after the other."""
    parts = [[nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)] for _ in range(layers)]
    return randomize(nn.Sequential(*(part for layer in parts for part in layer), nn.Flatten(), nn.Linear(12, 3)))


def one_channel() -> nn.Module:
    """Of one channel from its input to its answer."""
    parts = [[nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU()] for _ in range(2)]
    return randomize(nn.Sequential(*(part for layer in parts for part in layer), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def assert_good(model: nn.Module, out: Path, shape: tuple[int, ...] = SHAPE, **options: object) -> None:
    """The file is called good, and what it answers to inputs that it has not seen is a tenth of noise at most."""
    result = quantize(model, out, input_shape=shape, **{"synthesis": QUICK, **options})
    assert result.verified, result.problems
    images = inputs(shape, 32, seed=1)
    with torch.no_grad():
        expected = model(images).numpy()
    (answer,) = run(out / "model.onnx", [images.numpy()])
    assert np.square(answer - expected).sum() < 0.1 * np.square(expected).sum()


GAMMAS: dict[str, Callable[[BatchNorm], object]] = {
    "huge": lambda norm: norm.weight.mul_(1e4),
    "huge and tiny": lambda norm: norm.weight.mul_(torch.tensor([1e3, 1e-3]).repeat(norm.num_features // 2)),
    "dead": lambda norm: norm.weight[::2].zero_(),
    "without variance": lambda norm: norm.running_var.zero_(),
    "some without variance": lambda norm: norm.running_var[::2].zero_(),
}


@pytest.mark.parametrize("name", GAMMAS)
def test_channels(name: str, tmp_path: Path) -> None:
    assert_good(with_norms(GAMMAS[name]), tmp_path / "out")


def test_dead_channels_that_are_learned(tmp_path: Path) -> None:
    assert_good(with_norms(GAMMAS["dead"]), tmp_path / "out", **LEARNED)


def test_answers_that_hardly_differ_are_refused(tmp_path: Path) -> None:
    """With tiny gammas the biases are the answer, to a part in ten million."""
    model = with_norms(lambda norm: norm.weight.mul_(1e-4))
    result = quantize(model, tmp_path / "out", input_shape=SHAPE, synthesis=QUICK)
    assert not result.verified
    assert "it answers the same to every input" in result.problems[0]


def test_a_network_that_answers_the_same_to_every_input(tmp_path: Path) -> None:
    """Its quantized one may, too."""
    model = with_norms(lambda norm: norm.weight.zero_())
    assert quantize(model, tmp_path / "out", input_shape=SHAPE, synthesis=QUICK).verified


def upwards() -> nn.Module:
    """Of transposed convolutions, for which ONNX Runtime has no integer kernel."""
    parts = [nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2), nn.Tanh()]
    return randomize(nn.Sequential(*parts))


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_a_network_of_which_nothing_can_be_quantized_is_refused(bits: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing of this network can be quantized for onnxruntime \(conv"):
        quantize(
            upwards(), tmp_path / "out", input_shape=SHAPE, synthesis=QUICK, quantization=QuantizationConfig(bits=bits)
        )


def test_one_channel(tmp_path: Path) -> None:
    assert_good(one_channel(), tmp_path / "out", (1, 8, 8))


def test_one_pixel(tmp_path: Path) -> None:
    assert_good(randomize(small_conv()), tmp_path / "out", (3, 1, 1))


def test_a_batch_of_one(tmp_path: Path) -> None:
    assert_good(randomize(small_conv()), tmp_path / "out", synthesis=SynthesisConfig(count=1, batch_size=1, steps=4))


def test_two_hundred_layers(tmp_path: Path) -> None:
    result = quantize(chain(200), tmp_path / "out", input_shape=(3, 2, 2), synthesis=QUICK)
    assert len(result.layers) == 201
    assert result.simulation_match.holds
    assert result.verified or "the quantized network is broken" in result.problems[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_damaged_weights_are_refused(value: float, tmp_path: Path) -> None:
    model = with_norms(lambda norm: norm.weight[1].fill_(value))
    with pytest.raises(CaptureError, match=r"1\.weight holds NaN or infinite values"):
        quantize(model, tmp_path / "out", input_shape=SHAPE, synthesis=QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("DFFG_LARGE_NETWORK" not in os.environ, reason="takes 5 GB of memory; DFFG_LARGE_NETWORK=1 runs it")
def test_half_a_gigabyte_of_weights(tmp_path: Path) -> None:
    parts = [[nn.Conv2d(4096, 4096, 1, bias=False), nn.BatchNorm2d(4096), nn.ReLU()] for _ in range(8)]
    stem = nn.Conv2d(3, 4096, 1)
    model = randomize(nn.Sequential(stem, *(part for layer in parts for part in layer), nn.Flatten()))
    assert sum(weight.nbytes for weight in model.parameters()) > 500e6
    assert_good(model, tmp_path / "out", (3, 1, 1))
