"""ZeroQ's loss against its formula, written out over hooked BatchNorm inputs."""

from __future__ import annotations

import pytest

from dffg.synthesis.baselines import zeroq
from dffg.synthesis.probe import Probe
from tests.synthesis.baselines import config, images, look, pictures


def formula(model, batch):
    total = 0.0
    for image in batch:
        seen, _ = look(model, image[None])
        for layer in seen:
            mean, sd = layer.moments((0, 2, 3))
            total += float(((mean - layer.mean) ** 2).sum() + ((sd - layer.sd) ** 2).sum())
        for channel in image:
            total += float(channel.mean() ** 2 + ((channel.var() + 1e-6).sqrt() - 1) ** 2)
    return total / len(batch)


def test_loss_is_the_formula():
    model, captured = pictures()
    batch = 1.5 * images() + 0.2
    assert float(zeroq.statistics_loss(Probe(captured), batch)) == pytest.approx(formula(model, batch), rel=1e-4)


def test_the_first_visit_is_nearly_black_and_scored_by_the_formula():
    model, captured = pictures()
    visit = next(zeroq.run_chain(captured, config("zeroq"), 0))
    assert visit.loss == pytest.approx(formula(model, visit.images), rel=1e-4)
    levels = visit.images * 5418.75 + 127.5
    assert float((levels - levels.round()).abs().max()) < 1e-3
    assert float(levels.min()) >= 0
    assert 200 < float(levels.max()) < 254.5


def test_the_first_step_is_as_long_as_the_learning_rate():
    _, captured = pictures()
    first, second, *_ = zeroq.run_chain(captured, config("zeroq"), 0)
    moved = (second.images - first.images).abs()
    # shorter only where the gradient is next to nothing
    assert float(moved.max()) == pytest.approx(0.5, abs=1e-4)
    assert float(moved.quantile(0.1)) == pytest.approx(0.5, abs=1e-3)
