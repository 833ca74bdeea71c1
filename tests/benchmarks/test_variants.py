"""Variants of the loss beside the loss itself, and the gradient of sampled statistics beside autograd's."""

from __future__ import annotations

import pytest
import torch

from benchmarks import variants
from dffg.config import SynthesisConfig
from dffg.graph.captured import capture
from dffg.synthesis.chain import gradient_of
from dffg.synthesis.objective import Objective
from tests.benchmarks.small import SPEC, small_benchmark

CONFIG = SynthesisConfig(slack=0.1)
NEVER = 10**6


@pytest.fixture(scope="module")
def captured():
    return capture(small_benchmark().model, spec=SPEC)


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, *SPEC.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [variants.plain_formulation, variants.sampled_statistics(NEVER)])
def test_other_formulations_have_the_loss_and_gradient_of_ours(captured, images, make):
    expected, expected_gradient = gradient_of(Objective(captured, slack=CONFIG.slack))(images)
    loss, gradient = gradient_of(make(captured, CONFIG))(images)
    assert loss == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * float(expected_gradient.abs().max()))


def test_sampled_statistics_are_another_loss(captured, images):
    loss, _ = gradient_of(variants.sampled_statistics(0)(captured, CONFIG))(images)
    every, _ = gradient_of(Objective(captured, slack=CONFIG.slack))(images)
    assert loss != pytest.approx(every, rel=1e-2)


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(("largest", "step"), [(11, 2), (12, 1)])
def test_the_gradient_of_sampled_moments_is_autograds(owned, largest, step):
    values = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    found, expected = values.clone().requires_grad_(True), values.clone().requires_grad_(True)
    passed, mean, var = variants.passed_with_sampled_moments(found, False, owned, largest)
    seen = expected[:, :, ::step, ::step]
    moments = torch.var_mean(seen, dim=(0, 2, 3), correction=0)
    _loss(passed, mean, var).backward()
    _loss(expected, moments[1], moments[0]).backward()
    torch.testing.assert_close(found.grad, expected.grad)


def _loss(passed, mean, var):
    return passed.square().sum() + (3 * mean.square()).sum() + (var - 1).square().sum()
