from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dffg.graph.batch_norms import BatchNorm
from dffg.graph.captured import capture
from dffg.spec import ImageSpec
from dffg.synthesis.objective import Objective
from dffg.synthesis.statistics import (
    batch_norm_inputs,
    batch_norm_statistics_loss,
    input_statistics,
    layer_loss,
    live_channels,
)
from tests.networks import NETWORKS, captured, inputs, network, randomize, small_conv

EPS = 1e-3


def norm_of(mean, var, weight=None, eps=EPS):
    return BatchNorm(
        name="norm",
        node=None,
        running_mean=torch.as_tensor(mean, dtype=torch.float32),
        running_var=torch.as_tensor(var, dtype=torch.float32),
        weight=None if weight is None else torch.as_tensor(weight, dtype=torch.float32),
        bias=None,
        eps=eps,
    )


def activation(*shape, seed=0):
    return 0.5 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((5, 3), nn.BatchNorm1d),
        ((5, 3, 7), nn.BatchNorm1d),
        ((5, 3, 4, 6), nn.BatchNorm2d),
        ((5, 3, 2, 3, 4), nn.BatchNorm3d),
    ],
)
def test_statistics_are_those_of_a_batch_norm_in_train_mode(shape, layer):
    x = activation(*shape)
    reference = layer(3, momentum=1.0).train()
    reference(x)
    count = x.numel() / 3
    mean, var = input_statistics(x)
    assert torch.allclose(mean, reference.running_mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(var, reference.running_var * (count - 1) / count, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (1, 3, 1, 2)])
def test_statistics_per_image_are_those_of_every_image_alone(shape):
    x = activation(*shape)
    mean, var = input_statistics(x, per_image=True)
    assert mean.shape == var.shape == shape[:2]
    for index, image in enumerate(x.numpy()):
        assert mean[index].numpy() == pytest.approx(image.mean((1, 2)), rel=1e-5)
        assert var[index].numpy() == pytest.approx(image.var((1, 2)), rel=1e-4)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1, 1)])
def test_one_value_per_image_is_measured_over_the_batch(shape):
    x = activation(*shape)
    for per_image, batch in zip(input_statistics(x, per_image=True), input_statistics(x)):
        assert torch.equal(per_image, batch)


@pytest.mark.parametrize("slack", [0.0, 0.3])
@pytest.mark.parametrize("per_image", [False, True])
def test_layer_loss_follows_the_formula(per_image, slack):
    x = activation(4, 3, 5, 5)
    norm = norm_of([0.1, -0.7, 2.0], [0.5, 1.5, 4.0])
    terms = []
    for group in x.double().numpy() if per_image else [x.double().numpy()]:
        for channel in range(3):
            values = group[channel] if per_image else group[:, channel]
            total = float(norm.running_var[channel]) + EPS
            mean_term = abs((values.mean() - float(norm.running_mean[channel])) / np.sqrt(total))
            std_term = abs(np.sqrt((values.var() + EPS) / total) - 1)
            terms.append(max(mean_term - slack, 0) ** 2 + max(std_term - slack, 0) ** 2)
    assert float(layer_loss(norm, x, per_image, slack)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_errors_within_the_slack_cost_nothing_and_pull_nowhere():
    x = activation(4, 3, 5, 5).requires_grad_(True)
    mean, var = input_statistics(x.detach())
    loss = layer_loss(norm_of(mean + 0.1 * (var + EPS).sqrt(), var), x, slack=0.2)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not x.grad.any()


def test_the_loss_is_zero_where_the_statistics_match():
    x = activation(4, 3, 5, 5)
    mean, var = input_statistics(x)
    assert float(layer_loss(norm_of(mean, var), x)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mean_one_deviation_off_costs_one(channels):
    x = activation(4, channels, 5, 5)
    mean, var = input_statistics(x)
    assert float(layer_loss(norm_of(mean + (var + EPS).sqrt(), var), x)) == pytest.approx(1, rel=1e-4)


def test_twice_the_deviation_costs_one_and_no_deviation_costs_one():
    x = activation(4, 3, 5, 5)
    mean, var = input_statistics(x)
    assert float(layer_loss(norm_of(mean, var / 4, eps=0.0), x)) == pytest.approx(1, rel=1e-4)
    assert float(layer_loss(norm_of(mean, torch.ones(3), eps=1e-12), mean.reshape(1, 3, 1).expand(4, 3, 5))) == (
        pytest.approx(1, rel=1e-4)
    )


def test_a_channel_of_zero_variance_is_finite_and_can_be_met():
    norm = norm_of([1.0, 2.0], [0.0, 0.0], eps=1e-5)
    exact = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).expand(3, 2, 4, 4).clone().requires_grad_(True)
    loss = layer_loss(norm, exact)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(exact.grad).all()
    assert torch.isfinite(layer_loss(norm, activation(3, 2, 4, 4)))


@pytest.mark.parametrize("per_image", [False, True])
def test_channels_that_the_batch_norm_multiplies_by_zero_are_left_out(per_image):
    x = activation(4, 3, 5, 5)
    norm = norm_of([5.0, 0.1, 5.0], [1.0, 2.0, 1.0], weight=[0.0, -2.0, 0.0])
    alone = norm_of([0.1], [2.0])
    assert float(layer_loss(norm, x, per_image)) == pytest.approx(
        float(layer_loss(alone, x[:, 1:2], per_image)), rel=1e-5
    )


@pytest.mark.parametrize(("weight", "live"), [(0.0, False), (1e-20, False), (1e-9, False), (1e-5, True), (-1.0, True)])
def test_channels_that_are_lost_in_float32_are_dead(weight, live):
    norm = norm_of([0.0, 0.0], [1.0, 1.0], weight=[weight, 0.5])
    assert live_channels(norm).tolist() == [live, True]
    assert live_channels(norm_of([0.0, 0.0], [1.0, 1.0])).tolist() == [True, True]


def test_a_weight_is_judged_beside_its_bias_and_the_largest():
    norm = replace(norm_of([0.0, 0.0], [1.0, 1.0], weight=[1e-9, 1.0]), bias=torch.zeros(2))
    assert live_channels(norm).tolist() == [False, True]
    norm = replace(norm_of([0.0, 0.0], [1.0, 1.0], weight=[1e-6, 1e-6]), bias=torch.tensor([100.0, 1.0]))
    assert live_channels(norm).tolist() == [False, True]


def test_a_small_weight_beside_small_weights_is_alive():
    assert live_channels(norm_of([0.0, 0.0], [1.0, 1.0], weight=[1e-9, 1e-8])).tolist() == [True, True]


def test_a_layer_without_live_channels_costs_nothing():
    assert float(layer_loss(norm_of([5.0] * 3, [1.0] * 3, weight=[0.0] * 3), activation(4, 3, 5, 5))) == 0


def test_every_layer_counts_the_same_however_wide():
    wide, narrow = activation(4, 8, 5, 5), activation(4, 2, 3, 3)
    norms = norm_of([0.0] * 8, [1.0] * 8), norm_of([0.3] * 2, [2.0] * 2)
    expected = (float(layer_loss(norms[0], wide)) + float(layer_loss(norms[1], narrow))) / 2
    assert float(batch_norm_statistics_loss(norms, [wide, narrow])) == pytest.approx(expected, rel=1e-6)


def test_every_batch_norm_needs_its_activation():
    with pytest.raises(ValueError, match="zip"):
        batch_norm_statistics_loss([norm_of([0.0], [1.0])] * 2, [activation(4, 1, 3, 3)])


def hooked_inputs(model, x):
    """The inputs of every BatchNorm module, as the model itself passes them."""
    seen = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    with torch.no_grad():
        model(x)
    return seen


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "functional"])
def test_batch_norm_inputs_are_what_the_modules_are_given(name):
    model, shape = network(name)
    x = inputs(shape)
    found, expected = batch_norm_inputs(captured(name))(x), hooked_inputs(model, x)
    assert len(found) == len(expected)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(found, expected))


def test_a_network_that_remembers_a_batch_has_no_loss_on_it_and_some_on_another():
    model, x = randomize(small_conv()), inputs((3, 8, 8), 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.register_forward_hook(correct_for_the_sample)
    model.train()(x)
    remembered = capture(model.eval(), spec=ImageSpec(shape=(3, 8, 8)))
    for loss in (Objective(remembered), lambda x: loss_of(remembered, x)):
        assert float(loss(x)) == pytest.approx(0, abs=1e-8)
        assert float(loss(inputs((3, 8, 8), 16, seed=1) ** 2)) > 1e-2


def correct_for_the_sample(module, arguments, _):
    """In train mode a BatchNorm stores the unbiased variance and uses the biased one."""
    if module.training:
        count = arguments[0].numel() // module.num_features
        module.running_var *= (count - 1) / count


def loss_of(network, x, per_image=False):
    return batch_norm_statistics_loss(network.batch_norms, batch_norm_inputs(network)(x), per_image=per_image)


def value_and_gradient(function, x):
    x = x.clone().requires_grad_(True)
    loss = function(x)
    return float(loss.detach()), torch.autograd.grad(loss, x)[0]


def test_per_image_gradients_do_not_depend_on_the_other_images():
    made, x = captured("conv"), inputs((3, 8, 8), 4)
    for per_image in (True, False):
        _, together = value_and_gradient(Objective(made, per_image=per_image), x)
        _, alone = value_and_gradient(Objective(made, per_image=per_image), x[:1])
        assert torch.allclose(together[:1] * 4, alone, rtol=1e-3, atol=1e-6) is per_image


@pytest.mark.parametrize("direction", ["brightness", "contrast", "noise"])
def test_the_gradient_agrees_with_finite_differences(direction):
    objective, x = Objective(captured("conv")), inputs((3, 8, 8), 2)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    direction = {"brightness": torch.ones_like(x), "contrast": x - 0.5, "noise": noise}[direction]
    _, gradient = value_and_gradient(objective, x)
    step = 1e-3
    slope = (float(objective(x + step * direction)) - float(objective(x - step * direction))) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.02)
