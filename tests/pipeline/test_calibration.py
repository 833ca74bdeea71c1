from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dffg.config import MOST_SEED, SynthesisConfig
from dffg.evaluation.data import load_data
from dffg.pipeline import calibration
from dffg.pipeline.calibration import Calibration, held_out, held_out_images, save_images
from dffg.report.result import Images
from dffg.spec import Array, ImageSpec, JointSpec

PICTURE = ImageSpec(shape=(3, 4, 4), mean=(0.5,), std=(0.25,))
TWO = JointSpec.of([PICTURE, ImageSpec(shape=(5,), bounds=(-3.0, 3.0))])
PIXELS = PICTURE.from_uint8(np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4))
NORMAL = np.random.default_rng(0).normal(size=(2, *TWO.shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "inputs", "names"),
    [
        (PICTURE, PIXELS, ["images"]),
        (PICTURE, NORMAL[:, :48].reshape(2, 3, 4, 4), ["features"]),
        (TWO, NORMAL, ["input0", "input1"]),
    ],
    ids=["pixels", "features", "several inputs"],
)
def test_images_that_were_given_are_saved_as_they_were(
    tmp_path: Path, spec: ImageSpec, inputs: Array, names: list[str]
) -> None:
    description = Images(source="real images", count=2, chains=0, steps=0, passes=0)
    path = tmp_path / "images.npz"
    save_images(Calibration(inputs=inputs, made=None, description=description), spec, path)
    with np.load(path) as arrays:
        assert sorted(arrays.files) == names
    np.testing.assert_array_equal(next(load_data(path, spec, labelled=False).batches()), inputs)


@pytest.mark.parametrize(
    ("seed", "other"),
    [(3, 1_000_006), (-1, 1_000_002), (MOST_SEED, MOST_SEED - 1_000_003), (-MOST_SEED, 1_000_003 - MOST_SEED)],
)
def test_held_out_images_are_of_another_seed(monkeypatch: pytest.MonkeyPatch, seed: int, other: int) -> None:
    made: list[int] = []

    def make(_: object, config: SynthesisConfig, **options: object) -> SimpleNamespace:
        made.append(config.seed)
        return SimpleNamespace(inputs=PIXELS)

    monkeypatch.setattr(calibration, "synthesize_set", make)
    run: Any = SimpleNamespace(network=None, progress=None, memory_limit=None)
    held_out_images(run, SynthesisConfig(seed=seed))
    assert made == [other]


@pytest.mark.parametrize(
    ("config", "count", "steps"),
    [
        (SynthesisConfig(steps=8, batch_size=4), 8, 8),
        (SynthesisConfig(steps=8, batch_size=4, count=5), 5, 8),
        (SynthesisConfig(generator="zeroq", count=200), 64, 16),
    ],
)
def test_held_out_images_are_those_of_one_chain_of_ours(config: SynthesisConfig, count: int, steps: int) -> None:
    found = held_out(config)
    assert (found.generator, found.count, found.steps) == ("dffg", count, steps)
