"""GENIE: the loss is the formula, the generator normalizes, strides swing by at most one."""

from __future__ import annotations

import pytest
import torch

from dffg.errors import InputError
from dffg.synthesis.baselines import genie
from dffg.synthesis.probe import Probe
from tests.networks import captured as known
from tests.synthesis.baselines import config, images, look, pictures


def formula(model, batch):
    seen, _ = look(model, batch)
    total = 0.0
    for layer in seen:
        mean, sd = layer.moments((0, 2, 3))
        total += float((((mean - layer.mean) ** 2).sum() + ((sd - layer.sd) ** 2).sum()) / len(mean))
    errors = [float(values.mean() ** 2 + (values.std() - 1) ** 2) for image in batch for values in image]
    return total + sum(errors) / len(batch)


def test_loss_is_the_formula():
    model, captured = pictures()
    batch = 1.5 * images(5) + 0.4
    assert float(genie.statistics_loss(Probe(captured), batch)) == pytest.approx(formula(model, batch), rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 49, 10), (3, 6, 9), (5, 7), (4,), (1, 4, 4, 4)])
def test_made_images_have_mean_0_and_deviation_1(shape):
    generator = torch.Generator().manual_seed(0)
    made = genie.Maker(shape, generator)(torch.randn(16, 256, generator=generator))
    assert made.shape == (16, *shape)
    values = made.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(shape[0]), atol=1e-2, rtol=0)


def test_weights_are_drawn_as_torch_would():
    torch.manual_seed(0)
    made = genie.Maker((3, 8, 8), torch.Generator().manual_seed(0))
    reference = torch.nn.Conv2d(128, 64, 3, padding=1)
    for name, torches in reference.state_dict().items():
        drawn = made.middle.state_dict()[name]
        assert drawn.shape == torches.shape
        assert float(drawn.abs().max()) == pytest.approx(float(torches.abs().max()), rel=0.1)
        assert float(drawn.std()) == pytest.approx(float(torches.std()), rel=0.2)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 7), (1, 2, 4, 5, 3)])
def test_a_swing_keeps_the_shape_and_shifts_by_at_most_one(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    inner = tuple(slice(1, size - 1) for size in shape[2:])
    axes = tuple(range(2, len(shape)))
    shifts = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * len(axes)).reshape(-1, len(axes)).tolist()
    seen = set()
    for _ in range(40 * len(shifts)):
        swung = genie.swing(x, generator)
        assert swung.shape == x.shape
        where = [
            tuple(shift)
            for shift in shifts
            if torch.equal(swung[:, :, *inner], torch.roll(x, shift, axes)[:, :, *inner])
        ]
        assert len(where) == 1
        seen.update(where)
    assert seen == set(map(tuple, shifts))


def test_the_edge_of_a_swing_is_reflected():
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(genie.swing(x, generator).flatten().tolist()) for _ in range(50)}
    assert seen == {(2, 1, 2), (1, 2, 3), (2, 3, 2)}


def test_an_axis_of_one_does_not_swing():
    x = torch.randn(1, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x[..., 1:2], x, x[..., 2:3]], -1)
    swung = genie.swing(x, torch.Generator())
    assert any(torch.equal(swung, padded[..., start : start + 4]) for start in range(3))


def test_only_strided_convolutions_swing_and_every_pass_anew():
    network, batch = known("conv"), images()
    generator = torch.Generator().manual_seed(0)
    swinging = Probe(network, change=lambda module: genie.swing_strided_(module, generator))
    plain = Probe(network)(batch)
    passes = [swinging(batch) for _ in range(30)]
    assert all(torch.equal(layers[0].mean_error, plain[0].mean_error) for layers in passes)
    different = {tuple(layers[1].mean_error.tolist()) for layers in passes}
    assert 2 < len(different) <= 9
    names = [str(node.target) for node in network.module.graph.nodes]
    assert not any("swing" in name for name in names)


def test_networks_without_strides_are_left_alone():
    network, batch = known("residual"), images()
    swinging = Probe(network, change=lambda module: genie.swing_strided_(module, torch.Generator()))
    assert all(
        torch.equal(left.mean_error, right.mean_error)
        for left, right in zip(swinging(batch), Probe(network)(batch), strict=True)
    )


def test_a_chain_visits_what_its_generator_makes():
    _, captured = pictures()
    visits = list(genie.run_chain(captured, config("genie", batch_size=8), 0))
    for visit in visits:
        values = visit.images.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-4, rtol=0)


def test_latents_and_weights_both_learn_at_rates_that_decay(monkeypatch):
    _, captured = pictures()
    made = []

    class Watched(torch.optim.Adam):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    monkeypatch.setattr(genie, "DECAY_EVERY", 2)
    list(genie.run_chain(captured, config("genie", steps=6), 0))
    groups = [group for optimizer in made for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.01 * 0.95**2])
    assert [len(group["params"]) for group in groups] == [1, 10]
    assert all(parameter.grad is not None for group in groups for parameter in group["params"])


def test_the_rate_of_the_latents_falls_on_a_plateau(monkeypatch):
    _, captured = pictures()
    made = []

    class Watched(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def __init__(self, optimizer, **options):
            super().__init__(optimizer, **options)
            made.append((self, options))

    monkeypatch.setattr(torch.optim.lr_scheduler, "ReduceLROnPlateau", Watched)
    list(genie.run_chain(captured, config("genie", steps=4), 0))
    ((schedule, options),) = made
    assert options == {"factor": 0.1, "patience": 100, "min_lr": 1e-4}
    assert schedule.last_epoch == 3
    assert schedule.optimizer.param_groups[0]["lr"] == 0.1


def test_a_batch_of_one_is_refused():
    _, captured = pictures()
    with pytest.raises(InputError, match="at least 2"):
        next(genie.run_chain(captured, config("genie", batch_size=1), 0))
