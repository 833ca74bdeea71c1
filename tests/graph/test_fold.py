import pytest
import torch
from torch import nn

from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms, fold_with_records, is_foldable
from dffg.graph.nodes import BATCH_NORM, calls
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, inputs, network, randomize, small_conv

SPEC = ImageSpec(shape=(3, 8, 8))


def batch_norms_left(module):
    return sum(calls(node, BATCH_NORM) for node in module.graph.nodes)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_the_graph_and_not_the_answer(name):
    model, shape = network(name)
    x, folded = inputs(shape), fold_batch_norms(captured(name))
    assert batch_norms_left(folded) == len(NETWORKS[name][2]) - NETWORKS[name][3]
    assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_folded_weights_follow_the_formula():
    model = randomize(small_conv())
    folded = fold_batch_norms(capture(model, spec=SPEC))
    nodes = [node for node in folded.graph.nodes if calls(node, torch.ops.aten.conv2d.default)]
    for node, convolution, norm in zip(nodes, (model[0], model[3]), (model[1], model[4]), strict=True):
        weight, bias = (getattr(folded, str(argument.target)) for argument in node.args[1:3])
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        before = 0 if convolution.bias is None else convolution.bias
        assert torch.allclose(weight, convolution.weight * factor.reshape(-1, 1, 1, 1), rtol=1e-5)
        assert torch.allclose(bias, (before - norm.running_mean) * factor + norm.bias, rtol=1e-4, atol=1e-6)


def test_the_capture_itself_is_not_folded():
    made, x = captured("conv"), inputs((3, 8, 8))
    before = made.module(x)
    fold_batch_norms(made)
    assert batch_norms_left(made.module) == 2
    assert torch.equal(made.module(x), before)


def test_folding_twice_from_one_capture_gives_the_same():
    made, x = captured("shared"), inputs((3, 6, 6))
    assert torch.equal(fold_batch_norms(made)(x), fold_batch_norms(made)(x))


def test_a_folded_layer_keeps_its_name():
    folded = fold_batch_norms(captured("inverted-residual"))
    names = [node.meta["dffg_name"] for node in folded.graph.nodes if "dffg_name" in node.meta]
    assert names == ["stem.0", "block.0", "block.3", "block.6"]


def test_a_batch_norm_whose_layer_is_read_elsewhere_is_not_folded():
    joined, right = captured("after-concat").batch_norms
    assert not is_foldable(joined)
    assert not is_foldable(right)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_records_say_where_each_batch_norm_went(name):
    made = captured(name)
    folded, records = fold_with_records(made)
    assert [record.norm.name for record in records] == list(NETWORKS[name][2])
    assert [record.folded for record in records] == [is_foldable(norm) for norm in made.batch_norms]
    assert all(record.node in set(folded.graph.nodes) for record in records)


def test_negative_zero_and_missing_affine_parts_fold():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False))
    randomize(model)
    with torch.no_grad():
        model[1].weight[:2] = torch.tensor([-0.7, 0.0])
        model[3].running_var[0] = 0
    x, folded = inputs((3, 8, 8)), fold_batch_norms(capture(model, spec=SPEC))
    expected = model(x)
    assert batch_norms_left(folded) == 0
    assert (folded(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_depthwise_and_a_grouped_convolution_fold():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1, groups=2), nn.BatchNorm2d(6)
    )
    x = inputs((4, 8, 8))
    made = capture(randomize(model), spec=ImageSpec(shape=(4, 8, 8)))
    assert torch.allclose(fold_batch_norms(made)(x), model(x), rtol=1e-4, atol=1e-5)


def test_stride_padding_and_dilation_survive():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4))
    x, made = inputs((3, 8, 8)), capture(randomize(model), spec=SPEC)
    assert torch.allclose(fold_batch_norms(made)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_is_left_alone():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4))
    x, made = inputs((3, 8, 8)), capture(randomize(model), spec=SPEC)
    folded = fold_batch_norms(made)
    assert batch_norms_left(folded) == 1
    assert torch.allclose(folded(x), model(x), atol=1e-5)
