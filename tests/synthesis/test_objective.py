"""The cheap objective against the readable one, on networks that nobody drew by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.graph.captured import Captured, capture
from dffg.spec import ImageSpec
from dffg.synthesis.objective import Objective
from dffg.synthesis.probe import Moments, Probe, StatisticsTarget, compare, moments, target_of
from dffg.synthesis.statistics import batch_norm_inputs, batch_norm_statistics_loss
from tests.networks import NETWORKS, captured, inputs, network, randomize

TOLERANCE = 1e-4
CHANNELS = 4


class Drawn(nn.Module):
    """Convolutions and BatchNorms in an arrangement given by options."""

    def __init__(
        self,
        *,
        depth: int,
        groups: int,
        stride: int,
        branch: bool,
        shared: bool,
        concat: bool,
        head: bool,
        affine: bool,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=not affine)
        self.stem_bn = nn.BatchNorm2d(CHANNELS, affine=affine)
        self.convs = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=stride if layer == 0 else 1, padding=1, groups=groups, bias=False)
            for layer in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(1 if shared else depth))
        self.side = nn.Conv2d(3, CHANNELS, 1, stride=stride) if branch else None
        self.side_bn = nn.BatchNorm2d(CHANNELS)
        self.concat_bn = nn.BatchNorm2d(2 * CHANNELS) if concat else None
        self.head = nn.Linear(2 * CHANNELS if concat else CHANNELS, 5) if head else None
        self.head_bn = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem_bn(self.stem(x)))
        for layer, conv in enumerate(self.convs):
            y = F.relu(self.norms[layer % len(self.norms)](conv(y)))
        if self.side is not None:
            y = y + self.side_bn(self.side(x))
        if self.concat_bn is not None:
            y = self.concat_bn(torch.cat([y, y * 0.5], 1))
        y = y.mean((2, 3))
        return y if self.head is None else self.head_bn(self.head(y))


graphs = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 3),
        "groups": st.sampled_from([1, 2, CHANNELS]),
        "stride": st.sampled_from([1, 2]),
        "branch": st.booleans(),
        "shared": st.booleans(),
        "concat": st.booleans(),
        "head": st.booleans(),
        "affine": st.booleans(),
    }
)


def spoil(model: Drawn, zero_gamma: bool, zero_variance: bool) -> None:
    """Give the network channels that are multiplied by 0, and channels that never vary."""
    with torch.no_grad():
        if zero_gamma and model.stem_bn.affine:
            model.stem_bn.weight[1] = 0
        if zero_gamma:
            model.norms[0].weight[2] = 0
        if zero_variance:
            model.convs[0].weight[0] = 0
            model.norms[0].running_mean[0] = 0
            model.norms[0].running_var[0] = 0


def value_and_gradient(loss_of: object, images: Tensor) -> tuple[float, Tensor]:
    images = images.clone().requires_grad_(True)
    loss = loss_of(images)  # type: ignore[operator]
    return float(loss.detach()), torch.autograd.grad(loss, images)[0]


def readable_loss(network: Captured, **options: object) -> object:
    observed = batch_norm_inputs(network)
    return lambda images: batch_norm_statistics_loss(network.batch_norms, observed(images), **options)


def assert_same(network: Captured, images: Tensor, per_image: bool, slack: float = 0.0) -> None:
    expected, expected_gradient = value_and_gradient(readable_loss(network, per_image=per_image, slack=slack), images)
    loss, gradient = value_and_gradient(Objective(network, per_image=per_image, slack=slack), images)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert expected_gradient.norm() > 0
    assert (gradient - expected_gradient).norm() <= TOLERANCE * expected_gradient.norm()


# Without shrinking: every example is captured anew, and the drawn options can be read as they are.
@settings(max_examples=20, phases=[Phase.generate])
@given(options=graphs, zero_gamma=st.booleans(), zero_variance=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_statistics_loss_on_random_graphs(options, zero_gamma, zero_variance, seed):
    model = Drawn(**options)
    randomize(model, seed)
    spoil(model, zero_gamma, zero_variance)
    network = capture(model, spec=ImageSpec(shape=(3, 8, 8)))
    images = inputs((3, 8, 8), count=3, seed=seed)
    for per_image in (False, True):
        assert_same(network, images, per_image)


@pytest.mark.parametrize("slack", [0.0, 0.2])
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_statistics_loss_on_known_networks(name, per_image, slack):
    network = captured(name)
    assert_same(network, inputs(network.spec.shape), per_image, slack)


@pytest.mark.parametrize("weight", [1e-9, 1e-20, 1e-40])
def test_a_channel_that_is_lost_in_float32_does_not_spoil_the_gradient(weight):
    """Folded statistics are divided by the weight of BatchNorm."""
    model, shape = network("conv")
    with torch.no_grad():
        norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        norm.weight[1] = weight
    assert_same(capture(model, spec=ImageSpec(shape=shape)), inputs(shape), per_image=False)


def test_every_batch_norm_call_counts_once():
    network = captured("shared")
    assert len(Probe(network)(inputs(network.spec.shape))) == len(network.batch_norms) == 2


SHAPES = [((4, 3, 5, 2), False), ((4, 3, 5, 2), True), ((6, 3), False), ((2, 3, 7), True), ((3, 2, 4, 3, 2), False)]


@pytest.mark.parametrize(("shape", "per_image"), SHAPES)
def test_closed_form_gradient_agrees_with_finite_differences(shape, per_image):
    activation = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    activation.requires_grad_(True)

    def mixed(x: Tensor) -> Tensor:
        passed, mean, var = Moments.apply(x, per_image, False)
        # all outputs, unequally, so that no gradient can stand in for another
        return (3 * mean.square() + mean * var.sqrt()).sum() + passed.pow(3).sum() / 7

    assert torch.autograd.gradcheck(mixed, activation, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
def test_moments_are_those_of_double_precision_where_the_mean_is_large(layout, per_image):
    drawn = torch.randn(4, 5, 9, 7, generator=torch.Generator().manual_seed(3))
    activation = (30 + drawn).contiguous(memory_format=layout)
    var, mean = torch.var_mean(activation.double(), (2, 3) if per_image else (0, 2, 3), correction=0)
    measured = moments(activation, per_image)
    torch.testing.assert_close(measured[0].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(measured[1].double(), var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
def test_measures_are_the_documented_formula(per_image):
    generator = torch.Generator().manual_seed(3)
    activation = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=generator)
    mean, std, floor, sd = (torch.rand(3, generator=generator, dtype=torch.float64) + 0.1 for _ in range(4))
    live = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    target = StatisticsTarget(mean=mean, std=std, floor=floor, remembered_std=sd, live=live)
    layer = compare(*moments(activation, per_image), target)
    images = activation[:, None] if per_image else activation[None]
    for index, group in enumerate(images):
        for channel in (0, 2):
            values = group[:, channel]
            error = float((values.mean() - mean[channel]) / std[channel])
            ratio = float((values.var(correction=0) / std[channel] ** 2 + floor[channel]).sqrt())
            found = layer.mean_error, layer.std_ratio
            assert [float(value.reshape(-1, 3)[index, channel]) for value in found] == pytest.approx([error, ratio])
        assert float(layer.mean_error.reshape(-1, 3)[index, 1]) == 0
        assert float(layer.std_ratio.reshape(-1, 3)[index, 1]) == 1
    assert torch.equal(layer.std, sd)


def test_the_answer_of_a_probe_is_that_of_the_network():
    network = captured("conv")
    images = inputs(network.spec.shape)
    layers, answer = Probe(network).with_answer(images)
    assert torch.allclose(answer, network.module(images), atol=1e-5)
    assert len(layers) == len(network.batch_norms)


def test_a_probe_sees_the_graph_as_it_was_changed():
    def swap(module):
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.sigmoid.default

    network = captured("conv")
    images = inputs(network.spec.shape)
    before, after = Probe(network)(images), Probe(network, change=swap)(images)
    assert torch.equal(before[0].mean_error, after[0].mean_error)
    assert not torch.allclose(before[-1].mean_error, after[-1].mean_error)


def test_a_batch_norm_multiplied_by_zero_everywhere_costs_nothing():
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[1].weight.zero_()
        model[3].weight.zero_()
    network = capture(model, spec=ImageSpec(shape=(3, 6, 6)))
    loss, gradient = value_and_gradient(Objective(network), inputs((3, 6, 6)))
    assert loss == 0
    assert not gradient.any()


def test_loss_is_zero_where_a_batch_has_exactly_the_remembered_statistics():
    images = inputs((3, 6, 6))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).eval()
    with torch.no_grad():
        activation = model[0](images)
        model[1].running_mean.copy_(activation.mean((0, 2, 3)))
        model[1].running_var.copy_(activation.var((0, 2, 3), correction=0))
    network = capture(model, spec=ImageSpec(shape=(3, 6, 6)))
    assert float(Objective(network)(images)) < 1e-9
    assert float(Objective(network, per_image=True)(images)) > 1e-4


def test_folded_targets_come_from_the_affine_part():
    from dffg.graph.fold import fold_with_records

    network = captured("conv")
    record = fold_with_records(network)[1][0]
    target = target_of(record)
    torch.testing.assert_close(target.mean, record.norm.bias)
    torch.testing.assert_close(target.std, record.norm.weight)
    torch.testing.assert_close(target.floor, 1e-5 / (record.norm.running_var + 1e-5))
    torch.testing.assert_close(target.remembered_std, (record.norm.running_var + 1e-5).sqrt())
    torch.testing.assert_close(target.live, torch.ones(8))
