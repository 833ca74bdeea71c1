"""DGH: moments of batches join to those of the whole set, its loss is the formula, and the canvas does what it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.spec import ImageSpec
from dffg.synthesis.baselines import dgh
from dffg.synthesis.probe import Probe
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import dead_channels, network
from tests.synthesis.baselines import FEATURES, SPEC, config, features, images, legal, look, pictures


def formula(model, batch):
    seen, answer = look(model, batch)
    pixels = [batch[:, channel] for channel in range(batch.shape[1])]
    layers = [sum(float(values.mean() ** 2 + (values.std(correction=0) - 1) ** 2) for values in pixels)]
    for layer in seen:
        mean, sd = layer.moments((0, 2, 3))
        channels = len(mean)
        layers.append(float((((mean - layer.mean) ** 2).sum() + ((sd - layer.sd) ** 2).sum()) / channels))
    reach = [float(row.max() - row.min()) for row in answer]
    return sum(layers) / len(layers), sum(reach) / len(reach)


def split_statistics(captured, batch, sizes):
    probe = Probe(captured)
    shares = torch.tensor([size / len(batch) for size in sizes])
    return dgh.pooled([probe(part) for part in batch.split(sizes)], shares), probe(batch)


@pytest.mark.parametrize("sizes", [[3, 3], [5, 1], [2, 2, 2]])
@pytest.mark.parametrize("kind", ["random", "dead"])
def test_batches_joined_are_the_whole_set(sizes, kind):
    captured = pictures()[1] if kind == "random" else capture(dead_channels(), spec=SPEC)
    batch = images(6) * torch.linspace(0.5, 3, 6).reshape(-1, 1, 1, 1) + torch.linspace(-1, 1, 6).reshape(-1, 1, 1, 1)
    joined, whole = split_statistics(captured, batch, sizes)
    for left, right in zip(joined, whole, strict=True):
        torch.testing.assert_close(left.mean_error, right.mean_error, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(left.std_ratio, right.std_ratio, rtol=1e-4, atol=1e-4)


def test_joining_does_not_cancel_where_the_mean_is_far_off():
    probe = Probe(capture(dead_channels(), spec=SPEC))
    (layer,) = probe(images())
    far = dgh.LayerStatistics(mean_error=torch.full((6,), 1e4), std_ratio=torch.ones(6), std=layer.std, live=layer.live)
    joined = dgh.join([far, far], torch.tensor([[0.5], [0.5]]))
    assert joined.std_ratio.tolist() == [1] * 6


def test_loss_is_the_formula():
    model, captured = pictures()
    batch = 1.5 * images(5)
    statistics, reach = formula(model, batch)
    layers, answer = Probe(captured).with_answer(batch)
    assert float(dgh.statistics_loss([dgh.input_layer(batch), *layers])) == pytest.approx(statistics, rel=1e-4)
    assert float(dgh.stretch(answer)) == pytest.approx(reach, rel=1e-4)


def test_a_batch_is_scored_with_the_moments_that_the_others_left(monkeypatch):
    monkeypatch.setattr(dgh, "STRETCH", 0.5)  # so that it shows beside the statistics
    model, captured = network("gray")[0], features()
    joint = dgh.JointWalk(captured, config("dgh", count=5, batch_size=3), torch.Generator().manual_seed(1))
    whole = joint.images()
    statistics, _ = formula(model, whole)
    _, reach = formula(model, whole[:3])
    assert joint.walk(0, move=False) == pytest.approx(statistics - 0.5 * reach, rel=1e-4)
    # after a move of the first batch, the second is scored against what the first looked like before it
    joint.walk(0, move=True)
    _, reach = formula(model, whole[3:])
    assert joint.walk(1, move=False) == pytest.approx(statistics - 0.5 * reach, rel=1e-4)
    moved = joint.images()
    assert not torch.equal(moved[:3], whole[:3])
    assert torch.equal(moved[3:], whole[3:])
    joint.walk(0, move=False)
    statistics, _ = formula(model, moved)
    _, reach = formula(model, moved[3:])
    assert joint.walk(1, move=False) == pytest.approx(statistics - 0.5 * reach, rel=1e-4)


def test_one_chain_makes_the_whole_set():
    _, captured = pictures()
    settings = config("dgh", count=7, batch_size=3, steps=4)
    visits = list(dgh.run_chain(captured, settings, 0))
    assert [len(visit.images) for visit in visits] == [7] * 4
    made = synthesize_set(captured, settings)
    assert [(record.chain, record.step, record.count) for record in made.snapshots] == [(0, 3, 7)]
    assert made.snapshots[0].loss == visits[-1].loss


@pytest.mark.parametrize(
    ("shape", "canvas"), [((3, 224, 224), (3, 256, 256)), ((3, 32, 32), (3, 37, 37)), ((1, 8, 14), (1, 9, 16))]
)
def test_the_canvas_is_a_seventh_larger_for_pictures_alone(shape, canvas):
    generator = torch.Generator()
    assert dgh.View(ImageSpec(shape=shape), generator).canvas_shape == canvas
    assert dgh.View(ImageSpec(shape=shape, bounds=(-1.0, 1.0)), generator).canvas_shape == shape


def gaussian(images):
    weights = [[math.exp(-(row**2 + column**2) / (2 * 1.25**2)) for column in (-1, 0, 1)] for row in (-1, 0, 1)]
    total = sum(map(sum, weights))
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    height, width = images.shape[-2:]
    result = torch.zeros_like(images)
    for row in range(3):
        for column in range(3):
            result += weights[row][column] / total * padded[..., row : row + height, column : column + width]
    return result


def test_smoothing_is_a_gaussian():
    batch = images()
    torch.testing.assert_close(dgh.smooth(batch), gaussian(batch))


def test_views_are_crops_of_the_smoothed_canvas_flipped_or_not():
    spec = ImageSpec(shape=(1, 14, 14), bounds=(0.0, 1.0))
    view = dgh.View(spec, torch.Generator().manual_seed(0))
    canvas = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    blurred = gaussian(canvas), gaussian(canvas.flip(-1))
    crops = [side[..., top : top + 14, left : left + 14] for side in blurred for top in range(3) for left in range(3)]
    seen = set()
    for _ in range(400):
        look_at = view.random(canvas)
        matches = [number for number, crop in enumerate(crops) if torch.allclose(look_at, crop, atol=1e-5)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(18))
    torch.testing.assert_close(view.center(canvas), crops[4])


def test_gradients_pass_the_clipping():
    view = dgh.View(FEATURES, torch.Generator())
    canvas = torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3).requires_grad_(True)
    seen = view.random(canvas)
    assert seen.flatten().tolist() == [-3, 0, 5]
    (gradient,) = torch.autograd.grad(seen.sum(), canvas)
    assert gradient.flatten().tolist() == [1, 1, 1]
    assert legal(view.center(canvas.detach()), FEATURES)


def test_a_plateau_halves_the_rate_and_forgets_the_best():
    optimizer = torch.optim.RAdam([torch.zeros(1, requires_grad=True)], lr=16.0)
    schedule = dgh.ForgetfulPlateau(optimizer, 2)
    rates = []
    for loss in (1.0, 2.0, 2.0, 2.0, 1.5, 1.4, 1.3, 1.2):
        schedule.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    # three losses no better than 1 are one more than patience; the falling ones after that are better than forgotten 1
    assert rates == [16, 16, 16, 8, 8, 8, 8, 8]


def test_the_rate_has_a_floor():
    optimizer = torch.optim.RAdam([torch.zeros(1, requires_grad=True)], lr=1.5e-4)
    schedule = dgh.ForgetfulPlateau(optimizer, 0)
    for loss in (1.0, 2.0, 3.0):
        schedule.step(loss)
    assert optimizer.param_groups[0]["lr"] == 1e-4
