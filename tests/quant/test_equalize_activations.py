import pytest
import torch
from torch import nn

from dffg.graph.nodes import Tap
from dffg.quant.equalize import rescale_moments
from dffg.quant.equalize_activations import equalize_activations, find_tied
from dffg.quant.moments import propagate
from dffg.quant.placement import clip_bounds
from tests.networks import NETWORKS, inputs, network, randomize
from tests.quant.test_equalize import biases_of, depthwise, folded, of_network, weights_of


def layers_of(groups):
    return [([node.name for node in group.writers], [node.name for node in group.readers]) for group in groups]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv", [(["conv2d"], ["conv2d_1"]), (["conv2d_1"], ["linear"])]),
        ("linear", [(["linear"], ["linear_1"])]),
        ("residual", [(["conv2d_1", "conv2d"], ["conv2d_1", "linear"])]),
        (
            "inverted-residual",
            [
                (["conv2d_3", "conv2d"], ["conv2d_1", "linear"]),
                (["conv2d_1"], ["conv2d_2"]),
                (["conv2d_2"], ["conv2d_3"]),
            ],
        ),
        ("shared", [(["conv2d"], ["conv2d_1"])]),
        ("pre-activation", [(["conv2d"], ["conv2d_1"])]),
        ("after-concat", []),
        ("sequence", []),
        ("volumes", []),
    ],
)
def test_a_shortcut_ties_the_layers_around_it(name, expected):
    found = layers_of(find_tied(of_network(name)[0]))
    assert sorted((sorted(w), sorted(r)) for w, r in found) == sorted((sorted(w), sorted(r)) for w, r in expected)


class Between(nn.Module):
    def __init__(self, between, channels=4):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(channels, 2, 1)
        self.norm, self.between = nn.BatchNorm2d(4), between
        self.register_buffer("constant", torch.rand(4, 8, 8))

    def forward(self, x):
        return self.second(self.between(self, self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("between", "movable"),
    [
        (lambda self, x: nn.functional.max_pool2d(x.relu(), 2), True),
        (lambda self, x: nn.functional.avg_pool2d(x, 2), True),
        (lambda self, x: x.clamp(0, 3) + x, True),
        (lambda self, x: x.clamp(-1, 1), False),
        (lambda self, x: x.sigmoid(), False),
        (lambda self, x: x * x, False),
        (lambda self, x: x + self.constant, False),
        (lambda self, x: x + x.mean((2, 3), keepdim=True), False),
        (lambda self, x: x.flip(1), False),
        (lambda self, x: torch.add(x, x.relu(), alpha=2), False),
    ],
    ids=["max-pool", "avg-pool", "sum", "clamp", "sigmoid", "product", "constant", "broadcast", "flip", "alpha"],
)
def test_what_may_lie_between(between, movable):
    module, _ = folded(randomize(Between(between)))
    assert bool(find_tied(module)) is movable


def test_a_tensor_that_the_user_gets_stays():
    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            features = self.body(x)
            return self.head(features) + features.sum()

    assert find_tied(folded(randomize(TwoOutputs()))[0]) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_is_the_same_and_the_original_untouched(name):
    model, shape = network(name)
    module, moments = of_network(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    text, x = str(module.graph), inputs(shape, 8)
    even, _ = equalize_activations(module, moments)
    assert torch.allclose(even(x), model(x), rtol=1e-4, atol=1e-5)
    assert str(module.graph) == text
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def reach(module, moments, name):
    """Largest |mean +- 4 std| of every channel, behind the clip of this node."""
    node = next(node for node in module.graph.nodes if node.name == name)
    found = propagate(module, moments)[node.args[0].name]
    ends = torch.stack([found.mean - 4 * found.std, found.mean + 4 * found.std])
    return ends.clamp(*clip_bounds(node)).abs().amax(0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_before_a_depthwise_layer_all_channels_reach_the_same(activation):
    module, moments = folded(depthwise(activation))
    even, scales = equalize_activations(module, moments)
    first = next(node.name for node in module.graph.nodes if clip_bounds(node))
    before = reach(module, moments, first)
    assert torch.allclose(scales["conv2d"], (before / before.max()).clamp(min=1 / 64))
    values = {}
    Tap(even, lambda name, value: values.setdefault(name, value)).run(inputs((3, 8, 8), 8))
    plain = {}
    Tap(module, lambda name, value: plain.setdefault(name, value)).run(inputs((3, 8, 8), 8))
    ratio = (plain["conv2d"] / values["conv2d"]).mean((0, 2, 3))
    assert torch.allclose(ratio.double(), scales["conv2d"], rtol=1e-3)
    assert float(scales["conv2d"].min()) < 0.2


def test_before_another_layer_half_of_the_way_is_gone():
    module, moments = of_network("linear")
    first, second = weights_of(module).values()
    bias = biases_of(module)["linear"]
    found = moments["linear"]
    ends = (found.mean + 4 * found.std).clamp(min=0)
    scale = (ends / ends.max()).clamp(min=1 / 64).sqrt().float()
    even, scales = equalize_activations(module, moments)
    assert torch.allclose(scales["linear"].float(), scale)
    assert torch.allclose(weights_of(even)["linear"], first / scale[:, None])
    assert torch.allclose(weights_of(even)["linear_1"], second * scale)
    assert torch.allclose(biases_of(even)["linear"], bias / scale)


def test_channels_move_only_upwards_so_that_relu6_clips_as_before():
    model = depthwise(nn.ReLU6)
    with torch.no_grad():
        model[1].weight.mul_(3)
    module, moments = folded(model)
    _, scales = equalize_activations(module, moments)
    assert all(float(scale.max()) <= 1 for scale in scales.values())
    node = next(node.name for node in module.graph.nodes if clip_bounds(node))
    after = rescale_moments(moments, scales)["conv2d"]
    clipped = reach(module, moments, node) >= 6
    assert float((after.mean + 4 * after.std)[~clipped].max()) <= 6 * (1 + 1e-9)
    assert 0 < int(clipped.sum()) < len(clipped)
    assert torch.equal(scales["conv2d"][clipped], torch.ones(int(clipped.sum()), dtype=torch.float64))


def test_without_statistics_nothing_moves():
    module, _ = of_network("conv")
    even, scales = equalize_activations(module, {})
    assert scales == {}
    assert str(even.graph) == str(module.graph)


class PooledShortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.body, self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.body(x))


def test_a_sum_of_something_unknown_stays():
    """BatchNorm says nothing of what a maximum over positions is."""
    module, moments = folded(randomize(PooledShortcut()))
    assert len(find_tied(module)) == 1
    assert equalize_activations(module, moments)[1] == {}


class Shortcut(nn.Module):
    """Two layers that write a sum, which a depthwise layer reads."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, x):
        return self.depthwise(self.left(x) + self.right(x))


def test_what_two_tensors_reach_together():
    module, moments = folded(randomize(Shortcut()))
    left, right = moments["conv2d"], moments["conv2d_1"]
    reach = (left.mean + right.mean).abs() + 4 * torch.hypot(left.std, right.std)
    scales = equalize_activations(module, moments)[1]
    assert torch.allclose(scales["conv2d"], reach / reach.max())
    assert torch.equal(scales["conv2d"], scales["conv2d_1"])
