"""A benchmark that needs no download: a small network, random examples, labels that the network gives itself."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.networks import Benchmark
from torch import nn

from dffg.evaluation.data import Data
from dffg.spec import ImageSpec
from tests.networks import randomize, small_conv

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def network() -> nn.Module:
    """By the name that the command line takes."""
    return randomize(small_conv())


def small_benchmark(name: str = "small", examples: int = 40) -> Benchmark:
    model = network()
    pixels = np.random.default_rng(0).integers(0, 256, (examples + 80, *SPEC.shape), dtype=np.uint8)
    with torch.no_grad():
        answers = model(torch.from_numpy(SPEC.from_uint8(pixels)))
    labels = answers.flatten(1).argmax(1).numpy()
    return Benchmark(
        name=name,
        model=model,
        spec=SPEC,
        calibration=Data(source=pixels[examples:], labels=None, spec=SPEC),
        evaluation=Data(source=pixels[:examples], labels=labels[:examples], spec=SPEC),
    )
