"""The control differs from ours in its update alone."""

from __future__ import annotations

import math

import pytest
import torch

from dffg.config import SynthesisConfig
from dffg.synthesis import chain
from dffg.synthesis.baselines import adam_snapshots
from dffg.synthesis.synthesize import synthesize_set
from tests.synthesis.baselines import SPEC, config, features, look, pictures


def formula(model, batch, slack):
    seen, _ = look(model, batch)
    layers = []
    for layer in seen:
        mean, sd = layer.moments((0, 2, 3))
        errors = ((mean - layer.mean) / layer.sd, sd / layer.sd - 1)
        layers.append(sum(float((torch.relu(error.abs() - slack) ** 2).mean()) for error in errors))
    return sum(layers) / len(layers)


@pytest.mark.parametrize("options", [{}, {"slack": 0.0}], ids=["default", "exact"])
def test_every_visit_is_scored_by_our_loss(options):
    model, captured = pictures()
    slack = options.get("slack", SynthesisConfig().slack)
    for visit in adam_snapshots.run_chain(captured, config("adam-snapshots", **options), 0):
        assert visit.loss == pytest.approx(formula(model, visit.images, slack), rel=1e-4)


@pytest.mark.parametrize("captured", [pictures()[1], features()], ids=["pictures", "features"])
def test_the_start_is_ours(captured):
    ours = next(chain.run_chain(captured, SynthesisConfig(batch_size=4, seed=3), 2))
    control = next(adam_snapshots.run_chain(captured, config("adam-snapshots", seed=3), 2))
    torch.testing.assert_close(control.images, ours.images)


def test_steps_are_fractions_of_the_range_along_our_cosine():
    _, captured = pictures()
    low, high = (torch.from_numpy(bound) for bound in SPEC.input_bounds())
    visits = list(adam_snapshots.run_chain(captured, config("adam-snapshots", steps=8), 0))
    first = ((visits[1].images - visits[0].images) / (high - low)).abs()
    # Adam's first step is the sign of the gradient; what is shorter met the bounds
    assert float(first.max()) == pytest.approx(1 / 8, abs=1e-5)
    assert [float(value.max()) for value in first.transpose(0, 1)] == pytest.approx([1 / 8] * 3, abs=1e-5)
    last = ((visits[7].images - visits[6].images) / (high - low)).abs()
    shrunk = 0.5 * (1 + math.cos(math.pi * 6 / 8)) / 8
    assert 0.3 * shrunk < float(last.max()) < 2 * shrunk


def test_the_last_quarter_is_kept():
    made = synthesize_set(pictures()[1], SynthesisConfig(generator="adam-snapshots", count=64))
    assert [record.step for record in made.snapshots] == [12, 13, 14, 15]
    assert len(made) == 64
