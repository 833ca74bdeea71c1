import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.graph.fold import fold_with_records
from dffg.graph.nodes import Tap
from dffg.quant.moments import Moments, batch_norm_moments, clipped_normal, propagate, response
from dffg.quant.placement import prepare
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, randomize


def moments(mean, std):
    return Moments(
        mean=torch.tensor(mean, dtype=torch.float64).reshape(-1), std=torch.tensor(std, dtype=torch.float64).reshape(-1)
    )


def known_of(made):
    folded, records = fold_with_records(made)
    return prepare(folded), batch_norm_moments(records)


@pytest.mark.parametrize(("low", "high"), [(0, math.inf), (0, 6), (-1, 1), (2, 3)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 0.7), (5.0, 2.0), (0.3, 4.0)])
def test_a_clipped_normal_is_what_integration_gives(mean, std, low, high):
    def expectation(power):
        def integrand(x):
            return min(max(x, low), high) ** power * stats.norm.pdf(x, mean, std)

        ends = [end for end in (low, high) if math.isfinite(end)]
        return integrate.quad(integrand, mean - 12 * std, mean + 12 * std, points=ends, limit=200)[0]

    found = clipped_normal(moments(mean, std), low, high)
    assert float(found.mean) == pytest.approx(expectation(1), abs=1e-6)
    assert float(found.std) == pytest.approx(math.sqrt(expectation(2) - expectation(1) ** 2), abs=1e-5)


def test_a_constant_is_clipped_like_a_number():
    found = clipped_normal(moments([-1.0, 0.0, 2.0, 9.0], [0.0] * 4), 0, 6)
    assert found.mean.tolist() == pytest.approx([0, 0, 2, 6])
    assert found.std.tolist() == pytest.approx([0] * 4)


def test_what_a_batch_norm_writes_is_measured_on_data_with_its_statistics():
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, eps=0.1)))
    norm = model[1]
    x = torch.randn(64, 6, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
    x = x * norm.running_var.sqrt().reshape(-1, 1, 1) + norm.running_mean.reshape(-1, 1, 1)
    y = norm.double()(x)
    norm.float()
    _, known = known_of(capture(model, spec=ImageSpec(shape=(3, 4, 4))))
    (found,) = known.values()
    assert torch.allclose(found.mean, y.mean((0, 2, 3)))
    assert torch.allclose(found.std, y.std((0, 2, 3), correction=0))


def test_they_are_known_where_the_batch_norm_is_now():
    module, known = known_of(captured("pre-activation"))
    targets = {node.name: str(node.target) for node in module.graph.nodes}
    assert [targets[name] for name in known] == ["aten.batch_norm.default", "aten.conv2d.default"]


# Where a normal distribution is clipped once, all is exact; a sum of clipped ones is not normal.
EXACT = [name for name in NETWORKS if name not in ("residual", "residual-inplace", "shared", "after-pool")]


@torch.no_grad()
def sampled(module, known, shape):
    """Run a graph with normal samples in place of what is known; mean and deviation of every tensor per channel."""
    generator = torch.Generator().manual_seed(0)
    seen = {}

    def visit(name, value):
        if name in known:
            like = [1, -1, *[1] * (value.dim() - 2)]
            noise = torch.randn(value.shape, generator=generator)
            value = known[name].mean.float().reshape(like) + known[name].std.float().reshape(like) * noise
        seen[name] = value
        return value

    Tap(module, visit).run(inputs(shape, 500))
    return {name: value.transpose(0, 1).flatten(1) for name, value in seen.items() if value.dim() > 1}


@pytest.mark.parametrize("name", NETWORKS)
def test_moments_are_those_of_a_simulation_with_normal_tensors(name):
    module, known = known_of(captured(name))
    found = propagate(module, known)
    assert set(found) >= set(known)
    for node, values in sampled(module, known, NETWORKS[name][1]).items():
        if node in found:
            # Five standard errors, and what a sum that is not normal may add.
            tolerance = 5 * float(values.std(1).max()) / values.shape[1] ** 0.5 + (0 if name in EXACT else 0.1)
            assert (found[node].mean - values.mean(1)).abs().max() < tolerance
            assert (found[node].std - values.std(1)).min() > -tolerance
            if "pool" not in node and "flatten" not in node:
                assert (found[node].std - values.std(1)).abs().max() < tolerance


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv", {"conv2d", "relu", "conv2d_1", "hardtanh", "global_average_pool_default", "flatten"}),
        (
            "residual",
            {"conv2d", "relu", "conv2d_1", "add", "relu_1", "global_average_pool_default", "flatten_using_ints"},
        ),
        ("linear", {"linear", "relu"}),
        ("volumes", {"conv3d", "relu", "flatten"}),
    ],
)
def test_they_reach_as_far_as_they_can(name, expected):
    module, known = known_of(captured(name))
    assert set(propagate(module, known)) == expected


class Subsampled(nn.Module):
    """The shortcut of a CIFAR ResNet, a join, an average over positions, and a sum with half of something."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        x = self.bn(self.conv(x))
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        y = torch.cat([y, F.avg_pool2d(x, 2)], 1)
        weighted = torch.add(F.avg_pool2d(x, 2), x[:, :, ::2, ::2], alpha=0.5)
        return self.head(y) + weighted[:, :2]


def test_subsampling_padding_by_channels_and_joins_are_followed():
    model = randomize(Subsampled())
    module, known = known_of(capture(model, spec=ImageSpec(shape=(3, 8, 8))))
    found = propagate(module, known)
    beta = model.bn.bias.detach().double()
    assert torch.equal(found["pad"].mean, torch.cat([torch.zeros(1), beta, torch.zeros(1)]))
    assert torch.equal(found["cat"].mean, torch.cat([torch.zeros(1), beta, torch.zeros(1), beta]))
    assert found["pad"].std[0] == 0
    assert "add" not in found


class Rows(nn.Module):
    """Images to vectors: all of an image's numbers in one, or every channel's in a row of the batch."""

    def __init__(self, length):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.length, self.head = length, nn.Linear(length, 2)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).reshape(-1, self.length)).reshape(-1, 32 // self.length)


@pytest.mark.parametrize(("length", "known"), [(16, True), (4, False)])
def test_channels_are_followed_into_vectors_of_whole_images(length, known):
    module, norms = known_of(capture(randomize(Rows(length)), spec=ImageSpec(shape=(3, 2, 2))))
    assert any(name.startswith(("reshape", "view")) for name in propagate(module, norms)) == known


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_response_is_a_convolution_of_a_constant_input(groups):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4 // groups, 3, 3, dtype=torch.float64, generator=generator)
    values = torch.randn(4, dtype=torch.float64, generator=generator)
    expected = F.conv2d(values.reshape(1, 4, 1, 1).expand(1, 4, 3, 3), weight, groups=groups).flatten()
    assert torch.allclose(response(weight, values, groups), expected)


def test_the_response_of_a_linear_layer_is_a_product():
    weight, values = torch.randn(5, 3), torch.randn(3)
    assert torch.allclose(response(weight, values, 1), weight @ values)
