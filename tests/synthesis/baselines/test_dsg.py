"""Slack and enhancement of DSG by hand, and its loss against the formula over hooked BatchNorm inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dffg.synthesis.baselines import dsg
from dffg.synthesis.probe import LayerStatistics, Probe
from tests.networks import captured as known
from tests.synthesis.baselines import config, images, look, pictures


def oracle_slack(model, noise):
    seen, _ = look(model, noise)
    slacks = []
    for layer in seen:
        mean, sd = layer.moments((0, 2, 3))
        errors = (mean - layer.mean).abs(), (sd - layer.sd).abs()
        slacks.append([float(np.percentile(error.detach().numpy(), 90)) for error in errors])
    return slacks


def formula(model, batch, slacks):
    total = 0.0
    for index, image in enumerate(batch):
        seen, _ = look(model, image[None])
        for number, (layer, (mean_slack, sd_slack)) in enumerate(zip(seen, slacks, strict=True)):
            mean, sd = layer.moments((0, 2, 3))
            over = ((mean - layer.mean).abs() - mean_slack).clamp(min=0) ** 2
            over += ((sd - layer.sd).abs() - sd_slack).clamp(min=0) ** 2
            total += float(over.sum()) * (2 if index % len(seen) == number else 1)
        for channel in image:
            total += float(channel.mean() ** 2 + ((channel.var() + 1e-6).sqrt() - 1) ** 2)
    return total / len(batch)


def test_slack_is_the_percentile_of_what_noise_is_off_by():
    model, captured = pictures()
    noise = images(6, seed=5)
    found = [dsg.slack_of(layer) for layer in Probe(captured)(noise)]
    for slack, (mean, std) in zip(found, oracle_slack(model, noise), strict=True):
        assert float(slack.mean) == pytest.approx(mean, rel=1e-4)
        assert float(slack.std) == pytest.approx(std, rel=1e-4)


def layer_of(mean_error, std_ratio, std, live):
    return LayerStatistics(
        mean_error=torch.tensor(mean_error),
        std_ratio=torch.tensor(std_ratio),
        std=torch.tensor(std),
        live=torch.tensor(live),
    )


def test_slack_by_hand_in_own_units_and_without_dead_channels():
    # live errors of the mean: 0, 1, 2 -> the 0.9 percentile is 1.8; of the standard deviation: 0, 2, 4 -> 3.6
    layer = layer_of([0.0, -0.5, 1.0, 0.0], [1.0, 2.0, 3.0, 1.0], [2.0, 2.0, 2.0, 9.0], [1.0, 1.0, 1.0, 0.0])
    slack = dsg.slack_of(layer)
    assert float(slack.mean) == pytest.approx(1.8)
    assert float(slack.std) == pytest.approx(3.6)
    # what is beyond: 0.2 of the last mean and 0.4 of the last standard deviation
    assert float(dsg.slack_loss(layer, slack)) == pytest.approx(0.2**2 + 0.4**2, rel=1e-4)


def test_a_layer_without_live_channels_has_no_slack():
    slack = dsg.slack_of(layer_of([0.0], [1.0], [1.0], [0.0]))
    assert float(slack.mean) == float(slack.std) == 0


def test_images_stress_layers_in_turn():
    expected = [[2, 1, 1], [1, 2, 1], [1, 1, 2], [2, 1, 1], [1, 2, 1]]
    assert dsg.enhancement(5, 3).tolist() == expected
    assert dsg.enhancement(1, 3).tolist() == [[2, 1, 1]]


def test_loss_is_the_formula():
    model, captured = pictures()
    slacks = [
        dsg.Slack(mean=torch.tensor(0.1), std=torch.tensor(0.2)),
        dsg.Slack(mean=torch.tensor(0.3), std=torch.tensor(0.05)),
    ]
    batch = 1.5 * images(5) + 0.2
    expected = formula(model, batch, [(0.1, 0.2), (0.3, 0.05)])
    assert float(dsg.diverse_loss(Probe(captured), slacks, batch)) == pytest.approx(expected, rel=1e-4)


def test_a_chain_starts_from_noise_and_takes_steps_of_its_rate():
    _, captured = pictures()
    first, second, *_ = dsg.run_chain(captured, config("dsg", batch_size=64), 0)
    assert float(first.images.std()) == pytest.approx(1, abs=0.05)
    assert float((second.images - first.images).abs().max()) == pytest.approx(0.9, abs=1e-3)


def test_layers_of_one_value_are_measured_over_the_batch():
    network = known("linear")
    batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    none = dsg.Slack(mean=torch.tensor(0.0), std=torch.tensor(0.0))
    (layer,) = Probe(network)(batch)
    loss = (layer.std * layer.mean_error).square().sum() + (layer.std * (layer.std_ratio - 1)).square().sum()
    var, mean = torch.var_mean(batch.flatten(2), dim=2)
    terms = (mean**2 + ((var + 1e-6).sqrt() - 1) ** 2).sum(1).mean()
    assert float(dsg.diverse_loss(Probe(network), [none], batch)) == pytest.approx(float(2 * loss + terms), rel=1e-4)
