import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.graph.fold import fold_with_records
from dffg.graph.nodes import Tap, argument, layer_name, stored_tensor
from dffg.quant.equalize import absorb_biases, equalize_weights, find_pairs, rescale_moments
from dffg.quant.moments import batch_norm_moments
from dffg.quant.placement import prepare
from dffg.quant.widths import quantized_layers
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, network, randomize


def folded(model, shape=(3, 8, 8)):
    module, records = fold_with_records(capture(model, spec=ImageSpec(shape=shape)))
    return prepare(module), batch_norm_moments(records)


def of_network(name):
    module, records = fold_with_records(captured(name))
    return prepare(module), batch_norm_moments(records)


def depthwise(activation=nn.ReLU, padding=1):
    """Expand, depthwise, project, with channels of very different scale."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        activation(),
        nn.Conv2d(6, 6, 3, padding=padding, groups=6, bias=False),
        nn.BatchNorm2d(6),
        activation(),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1),
    )
    randomize(model)
    with torch.no_grad():
        model[1].weight.mul_(torch.tensor([1.0, 10.0, 0.1, 3.0, 0.3, 1.0]))
        model[4].weight.mul_(torch.tensor([0.2, 1.0, 5.0, 1.0, 8.0, 0.5]))
    return model


def weights_of(module):
    return {layer.name: stored_tensor(module, layer.args[1]) for layer in quantized_layers(module)}


def biases_of(module):
    biases = {layer.name: argument(layer, 2) for layer in quantized_layers(module)}
    return {name: stored_tensor(module, bias) for name, bias in biases.items() if bias is not None}


def names_of(pairs):
    return [(pair.first.name, pair.second.name, pair.rectified, pair.padded) for pair in pairs]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv", [("conv2d", "conv2d_1", True, True)]),
        ("linear", [("linear", "linear_1", True, False)]),
        ("residual", []),
        ("inverted-residual", []),
        ("shared", [("conv2d", "conv2d_1", True, True)]),
        ("pre-activation", [("conv2d", "conv2d_1", True, False)]),
        ("after-concat", []),
        ("after-pool", []),
        ("sequence", []),
    ],
)
def test_pairs_are_layers_whose_result_one_layer_reads(name, expected):
    assert names_of(find_pairs(of_network(name)[0])) == expected


def test_a_layer_may_be_second_and_first():
    pairs = names_of(find_pairs(folded(depthwise())[0]))
    assert pairs == [
        ("conv2d", "conv2d_1", True, True),
        ("conv2d_1", "conv2d_2", True, False),
        ("conv2d_2", "conv2d_3", False, False),
    ]


def test_relu6_is_not_scale_equivariant():
    assert names_of(find_pairs(folded(depthwise(nn.ReLU6))[0])) == [("conv2d_2", "conv2d_3", False, False)]


class Between(nn.Module):
    """Layers with something between them that is written as a function of the first's result."""

    def __init__(self, between, second):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.between, self.second = between, second

    def forward(self, x):
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "second", "expected"),
    [
        (lambda x: F.pad(x, (0, 1, 0, 1)), nn.Conv2d(4, 2, 3), [(False, True)]),
        (lambda x: F.pad(x.relu(), (1, 0, 0, 0)), nn.Conv2d(4, 2, 3), [(True, True)]),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), nn.Conv2d(6, 2, 1), []),
        (lambda x: F.pad(x, (1, 1), value=1.0), nn.Conv2d(4, 2, 3), []),
        (lambda x: x.clamp(min=0), nn.Conv2d(4, 2, 3), [(True, False)]),
        (lambda x: x.sigmoid(), nn.Conv2d(4, 2, 3), []),
        (lambda x: x, nn.Linear(8, 2), []),
    ],
    ids=["pad", "relu-pad", "channels", "ones", "clamp", "sigmoid", "linear"],
)
def test_what_may_lie_between(between, second, expected):
    model = Between(between, second).eval()
    wrapped = nn.Sequential(nn.BatchNorm2d(3), model)
    pairs = find_pairs(folded(randomize(wrapped))[0])
    assert [(pair.rectified, pair.padded) for pair in pairs] == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_is_the_same_and_the_original_untouched(name):
    model, shape = network(name)
    module, _ = of_network(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    text, x = str(module.graph), inputs(shape, 8)
    even, _ = equalize_weights(module)
    assert torch.allclose(even(x), model(x), rtol=1e-4, atol=1e-5)
    assert str(module.graph) == text
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_two_layers_by_hand():
    model = randomize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    module, _ = folded(model, (3,))
    first, second = weights_of(module).values()
    bias = biases_of(module)["linear"]
    scale = (first.abs().amax(1) / second.abs().amax(0)).sqrt()
    even, scales = equalize_weights(module)
    assert torch.allclose(scales["linear"].float(), scale)
    assert torch.allclose(weights_of(even)["linear"], first / scale[:, None])
    assert torch.allclose(weights_of(even)["linear_1"], second * scale)
    assert torch.allclose(biases_of(even)["linear"], bias / scale)
    assert torch.equal(biases_of(even)["linear_1"], biases_of(module)["linear_1"])


def test_a_chain_with_a_depthwise_layer_is_evened_out_to_the_end():
    module, _ = folded(depthwise())
    even, _ = equalize_weights(module)
    expand, middle, project, head = weights_of(even).values()
    assert torch.allclose(expand.abs().amax((1, 2, 3)), middle.abs().amax((1, 2, 3)), rtol=2e-3)
    assert torch.allclose(middle.abs().amax((1, 2, 3)), project.abs().amax((0, 2, 3)), rtol=2e-3)
    assert torch.allclose(project.abs().amax((1, 2, 3)), head.abs().amax((0, 2, 3)), rtol=2e-3)
    x = inputs((3, 8, 8), 8)
    assert torch.allclose(even(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_convolutions_read_their_own_channels(groups):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1, groups=groups)
    )
    module, _ = folded(randomize(model))
    even, _ = equalize_weights(module)
    first, second = weights_of(even).values()
    size = 6 // groups
    for channel in range(6):
        group = channel // size
        readers = second[group * 12 // groups : (group + 1) * 12 // groups, channel % size]
        assert float(readers.abs().max()) == pytest.approx(float(first[channel].abs().max()), rel=1e-3)
    x = inputs((3, 8, 8), 8)
    assert torch.allclose(even(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-7])
def test_pruned_channels_are_left_alone(value):
    model = depthwise()
    with torch.no_grad():
        model[0].weight[2] = value
        model[6].weight[:, 4] = value
    module, _ = folded(model)
    even, scales = equalize_weights(module)
    assert scales["conv2d"][2] == 1
    assert scales["conv2d_1"][4] == 1
    assert all(torch.isfinite(value).all() for value in even.state_dict().values())
    assert float(biases_of(even)["conv2d"].abs().max()) < 100
    x = inputs((3, 8, 8), 8)
    assert torch.allclose(even(x), module(x), rtol=1e-4, atol=1e-5)


def test_layers_keep_the_names_people_know():
    module, known = folded(nn.Sequential(nn.BatchNorm2d(3), Between(F.relu, nn.Conv2d(4, 2, 1))).eval())
    even, _ = absorb_biases(equalize_weights(module)[0], known)
    names = [layer.meta.get("dffg_name", layer_name(layer)) for layer in quantized_layers(even)]
    assert names == ["1.first", "1.second"]


def results_of(module, x):
    seen = {}
    with torch.no_grad():
        Tap(module, lambda name, value: seen.setdefault(name, value)).run(x)
    return seen


def test_moments_are_divided_as_the_results_are():
    module, known = folded(depthwise())
    even, scales = equalize_weights(module)
    moved = rescale_moments(known, scales)
    before, after = (results_of(each, inputs((3, 8, 8))) for each in (module, even))
    assert set(moved) == set(known)
    for name in known:
        shape = (-1, 1, 1)
        standardized = (before[name] - known[name].mean.reshape(shape)) / known[name].std.reshape(shape)
        again = (after[name] - moved[name].mean.reshape(shape)) / moved[name].std.reshape(shape)
        assert torch.allclose(standardized, again, atol=1e-4)


def high_biases(padding=0, activation=nn.ReLU):
    """A middle layer with channels that are always, never and nearly always positive."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 2, 3, padding=padding, bias=False)
    )
    randomize(model)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([5.0, -5.0, 0.5, 9.0]))
        model[1].weight.copy_(torch.tensor([0.5, 0.5, 1.0, -0.5]))
        model[1].running_var.fill_(1.0)
    return model


def test_biases_that_are_always_passed_move_to_the_next_layer():
    module, known = folded(high_biases())
    lower, moved = absorb_biases(module, known)
    std = 1 / (1 + 1e-5) ** 0.5
    surplus = torch.tensor([5 - 1.5 * std, 0, 0, 9 - 1.5 * std])
    assert torch.allclose(biases_of(lower)["conv2d"], biases_of(module)["conv2d"] - surplus)
    weight = weights_of(module)["conv2d_1"]
    expected = F.conv2d(surplus.reshape(1, 4, 1, 1).expand(1, 4, 3, 3), weight).flatten()
    assert argument(quantized_layers(module)[1], 2) is None
    assert torch.allclose(biases_of(lower)["conv2d_1"], expected, rtol=1e-4)
    assert torch.allclose(moved["conv2d"].mean.float(), known["conv2d"].mean.float() - surplus)
    assert torch.equal(moved["conv2d"].std, known["conv2d"].std)
    assert torch.equal(known["conv2d"].mean.float(), torch.tensor([5.0, -5.0, 0.5, 9.0]))


def test_the_answer_is_the_same_where_no_channel_falls_below_what_was_absorbed():
    module, known = folded(high_biases())
    lower, _ = absorb_biases(module, known)
    x = inputs((3, 8, 8), 8)
    lowest = results_of(lower, x)["conv2d"].amin((0, 2, 3))
    assert (lowest[[0, 3]] >= 0).all()
    assert torch.allclose(lower(x), module(x), atol=1e-4)
    assert results_of(lower, x)["relu"].max() < results_of(module, x)["relu"].max() - 5


@pytest.mark.parametrize("model", [high_biases(padding=1), high_biases(activation=nn.ReLU6)], ids=["padded", "relu6"])
def test_nothing_is_absorbed_where_borders_or_a_clip_would_miss_it(model):
    module, known = folded(model)
    lower, moved = absorb_biases(module, known)
    assert moved == known
    assert torch.equal(biases_of(lower)["conv2d"], biases_of(module)["conv2d"])


def test_a_layer_can_absorb_and_be_absorbed():
    model = depthwise(padding=0)
    with torch.no_grad():
        model[1].bias.fill_(40.0)
        model[4].bias.fill_(60.0)
    x = inputs((3, 8, 8), 64)
    for layer in model:
        layer.momentum = None
    model.train()(x)
    module, known = folded(model.eval())
    lower, moved = absorb_biases(module, known)
    assert all((moved[name].mean < known[name].mean).all() for name in ("conv2d", "conv2d_1"))
    answer = module(x)
    assert (lower(x) - answer).square().mean() < 1e-3 * answer.var()
