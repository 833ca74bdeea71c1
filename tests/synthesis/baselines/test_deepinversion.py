"""DeepInversion's terms against their formulas, over hooked BatchNorm inputs and pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch

from dffg.spec import ImageSpec
from dffg.synthesis.baselines import deepinversion
from dffg.synthesis.probe import Probe
from tests.networks import captured as known
from tests.networks import network
from tests.synthesis.baselines import FEATURES, SPEC, config, features, images, look, pictures


def statistics_formula(seen):
    total = 0.0
    for number, layer in enumerate(seen):
        values = layer.input.transpose(0, 1).flatten(1)
        mean_error = values.mean(1) - layer.mean
        var_error = values.var(1, correction=0) - layer.var
        value = math.sqrt(float((mean_error**2).sum())) + math.sqrt(float((var_error**2).sum()))
        total += value * (10 if number == 0 else 1)
    return total


def variation_formula(batch):
    squares = {"right": 0.0, "down": 0.0, "diagonal": 0.0, "other": 0.0}
    steps = {"right": (0, 1), "down": (1, 0), "diagonal": (1, 1), "other": (1, -1)}
    height, width = batch.shape[-2:]
    for name, (down, right) in steps.items():
        for row in range(height - down):
            for column in range(max(0, -right), width - max(0, right)):
                difference = batch[..., row + down, column + right] - batch[..., row, column]
                squares[name] += float((difference**2).sum())
    return sum(math.sqrt(value) for value in squares.values())


def entropy_formula(answer, classes):
    rows = answer.double().exp()
    chosen = rows[torch.arange(len(answer)), classes] / rows.sum(1)
    return -float(chosen.log().mean())


def test_statistics_are_norms_over_channels():
    model, captured = pictures()
    batch = 1.5 * images()
    expected = statistics_formula(look(model, batch)[0])
    assert float(deepinversion.statistics_loss(Probe(captured)(batch))) == pytest.approx(expected, rel=1e-4)


def test_total_variation_is_the_formula():
    batch = images(3)
    assert float(deepinversion.total_variation(batch)) == pytest.approx(variation_formula(batch), rel=1e-4)
    assert float(deepinversion.total_variation(torch.ones(2, 3, 4, 5))) == 0


def test_norm_is_per_image_and_harmless_at_zero():
    batch = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    loss = deepinversion.mean_norm(batch)
    assert float(loss.detach()) == pytest.approx(2.5)
    loss.backward()
    assert batch.grad.flatten().tolist() == pytest.approx([0.3, 0.4, 0, 0])


def whole_loss(network, model, batch, constants, monkeypatch):
    """Loss of the module, with jitter off, beside the sum of the formulas."""
    monkeypatch.setattr(deepinversion, "jitter", lambda batch, roll, generator: batch)
    generator = torch.Generator().manual_seed(3)
    loss = float(deepinversion.Inversion(network, constants, len(batch), generator)(batch))
    classes = torch.randint(5, (len(batch),), generator=torch.Generator().manual_seed(3))
    seen, answer = look(model, batch)
    norms = [math.sqrt(float((image**2).sum())) for image in batch]
    parts = {
        "statistics": constants.statistics * statistics_formula(seen),
        "norm": constants.norm * sum(norms) / len(norms),
        "classes": entropy_formula(answer, classes),
        "variation": constants.variation * variation_formula(batch),
    }
    return loss, parts


def test_the_whole_loss_is_the_sum_of_its_weighted_terms(monkeypatch):
    model, captured = pictures()
    # weights that make every term count
    constants = deepinversion.Constants(
        learning_rate=0.1, betas=(0.9, 0.99), statistics=0.5, variation=0.25, norm=0.125, roll=2
    )
    loss, parts = whole_loss(captured, model, images(6), constants, monkeypatch)
    assert min(parts.values()) > 0.1
    assert loss == pytest.approx(sum(parts.values()), rel=1e-4)


def test_features_are_not_smoothed_nor_jittered(monkeypatch):
    constants = deepinversion.Constants(
        learning_rate=0.1, betas=(0.9, 0.99), statistics=0.5, variation=0.25, norm=0.125, roll=2
    )
    batch = images(6, spec=FEATURES)
    loss, parts = whole_loss(features(), network("gray")[0], batch, constants, monkeypatch)
    del parts["variation"]
    assert loss == pytest.approx(sum(parts.values()), rel=1e-4)


def test_jitter_rolls_within_its_limit_and_flips_half_of_the_time():
    batch = torch.arange(49.0).reshape(1, 1, 7, 7)
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(deepinversion.jitter(batch, 2, generator).flatten().tolist()) for _ in range(600)}
    shifts = [torch.roll(batch, (down, right), (-2, -1)) for down in range(-2, 3) for right in range(-2, 3)]
    expected = {tuple(view.flatten().tolist()) for shift in shifts for view in (shift, shift.flip(-1))}
    assert len(expected) == 50
    assert seen == expected


@pytest.mark.parametrize(("width", "rate", "roll"), [(32, 0.05, 2), (64, 0.05, 2), (65, 0.25, 30), (224, 0.25, 30)])
def test_constants_depend_on_the_width(width, rate, roll):
    constants = deepinversion.constants_for(ImageSpec(shape=(3, 16, width)))
    assert (constants.learning_rate, constants.roll) == (rate, roll)


def test_answers_that_are_not_classes_have_no_cross_entropy():
    network = known("shared")
    assert network.module(torch.zeros(1, 3, 6, 6)).dim() == 4
    visits = list(deepinversion.run_chain(network, config("deepinversion", steps=3), 0))
    assert visits[-1].loss < visits[0].loss


def test_steps_follow_a_cosine_and_are_clipped():
    _, captured = pictures()
    visits = list(deepinversion.run_chain(captured, config("deepinversion", steps=10), 0))
    low, high = (torch.from_numpy(bound) for bound in SPEC.input_bounds())
    moved = (visits[1].images - visits[0].images).abs()
    assert float(moved.max()) == pytest.approx(0.05, abs=1e-4)
    assert float((visits[9].images - visits[8].images).abs().max()) < 0.02
    assert bool((visits[-1].images == low).any() or (visits[-1].images == high).any())
