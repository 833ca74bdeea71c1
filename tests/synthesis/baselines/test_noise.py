"""Noise is what it says it is, and no network is asked."""

from __future__ import annotations

import pytest
import torch

from dffg.synthesis.baselines import BASELINES
from tests.synthesis.baselines import FEATURES, SPEC, config, features, legal, pictures


def made(name, captured):
    visits = list(BASELINES[name](captured, config(name, batch_size=400, steps=1), 0))
    assert len(visits) == 1
    assert visits[0].loss is None
    return visits[0].images


def test_normal_noise_is_standard_normal_input():
    values = made("noise", pictures()[1])
    assert float(values.mean()) == pytest.approx(0, abs=0.02)
    assert float(values.std()) == pytest.approx(1, abs=0.02)
    assert not legal(values, SPEC)


@pytest.mark.parametrize(
    ("captured", "spec"), [(pictures()[1], SPEC), (features(), FEATURES)], ids=["pictures", "rest"]
)
def test_uniform_noise_fills_the_bounds(captured, spec):
    values = made("uniform", captured)
    assert legal(values, spec)
    low, high = (torch.from_numpy(bound) for bound in spec.input_bounds())
    share = (values - low) / (high - low)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / 12, abs=0.005)


def test_ones_are_ones():
    assert torch.equal(made("ones", features()), torch.ones(400, 1, 8, 8))


def test_sigma_noise_is_uniform_and_not_normalized():
    values = made("sigma-noise", pictures()[1])
    assert 0 <= float(values.min()) < 0.001
    assert 0.999 < float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
