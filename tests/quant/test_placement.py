import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import WEIGHTED, calls
from dffg.quant.decide import look
from dffg.quant.in_float import float_operations
from dffg.quant.operators import GLOBAL_AVERAGE_POOL
from dffg.quant.placement import integer_inputs, place, prepare
from dffg.spec import ImageSpec
from dffg.targets import EXECUTORCH, ONNXRUNTIME, OPENVINO
from tests.networks import NETWORKS, captured, inputs, network, randomize

SPEC = ImageSpec(shape=(3, 8, 8))


def ready(name):
    return prepare(fold_batch_norms(captured(name)))


def behind_a_stem(forward, **layers):
    """A network of one stem with BatchNorm and a forward of its own."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            return forward(self, self.stem(x))

    return capture(randomize(Network()), spec=SPEC)


def placed(forward, **layers):
    """Placement in such a network, as names; a convolution at the end is no answer in float here."""
    module = prepare(fold_batch_norms(behind_a_stem(forward, **layers)))
    placement = place(module)
    source = {node.name: other.name for node, other in placement.source.items()}
    return source, [node.name for node in placement.absorbed], in_float(module, placement, OPENVINO)


def in_float(module, placement, target):
    return [described.partition(" ")[0] for described in float_operations(module, placement, target)]


@pytest.mark.parametrize("name", NETWORKS)
def test_writing_pools_alike_keeps_the_answer(name):
    model, shape = network(name)
    x = inputs(shape)
    assert torch.allclose(ready(name)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2)),
        lambda x: x.mean((2, 3), keepdim=True).flatten(1),
        lambda x: x.mean((2, 3), keepdim=True)[:, :, 0, 0],
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1))[:, :, 0, 0],
    ],
)
def test_every_spelling_of_global_pooling_is_one_operator(pool):
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return pool(self.body(x))

    x, made = inputs((3, 8, 8)), capture(Pooled(), spec=SPEC)
    module = prepare(made.module)
    assert sum(calls(node, GLOBAL_AVERAGE_POOL) for node in module.graph.nodes) == 1
    assert torch.allclose(module(x), model(x).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("adaptive", [False, True])
def test_global_pooling_is_found_for_any_number_of_axes(dims, adaptive):
    conv, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, F.adaptive_avg_pool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, F.adaptive_avg_pool3d),
    }[dims]
    axes = tuple(range(2, 2 + dims))

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = randomize(nn.Sequential(conv(3, 4, 3), norm(4)))

        def forward(self, x):
            return pool(self.body(x), 1).flatten(1) if adaptive else self.body(x).mean(axes)

    model, shape = Pooled(), (3, *[6] * dims)
    module = prepare(capture(model, spec=ImageSpec(shape=shape)).module)
    assert sum(calls(node, GLOBAL_AVERAGE_POOL) for node in module.graph.nodes) == 1
    assert torch.allclose(module(inputs(shape)), model.eval()(inputs(shape)), atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean(1),
        lambda x: x.mean((1, 2)),
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: x - torch.mean(x, dim=None, keepdim=True),
    ],
)
def test_other_means_are_not_global_pooling(pool):
    source, _, left = placed(lambda self, x: pool(x))
    assert "global_average_pool_default" not in source
    assert left


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_of_a_layer_is_quantized(name):
    module = ready(name)
    source = place(module).source
    layers = [node for node in module.graph.nodes if calls(node, *WEIGHTED)]
    assert layers
    assert all(node.args[0] in source for node in layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_result_of_a_layer_but_the_last_is_quantized_at_once_or_behind_its_activation(name):
    module = ready(name)
    source, output = place(module).source, module.graph.output_node().args[0]
    for node in module.graph.nodes:
        # BatchNorm behind the only layer of this network has no integer kernel.
        if calls(node, *WEIGHTED) and node is not output and name != "sequence":
            assert node in source or all(user in source for user in node.users)


def test_the_last_layer_stays_float():
    for name in ("conv", "residual", "inverted-residual", "after-pool"):
        module = ready(name)
        assert module.graph.output_node().args[0] not in place(module).source


@pytest.mark.parametrize("activation", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid(), nn.Tanh()])
def test_the_last_layer_stays_float_before_what_turns_its_answer_into_probabilities(activation):
    head = nn.Sequential(nn.Flatten(), nn.Linear(256, 3), activation)
    source, _, left = placed(lambda self, x: self.head(x), head=head)
    assert "linear" not in source
    assert len(left) == 1
    read_on, *_ = placed(lambda self, x: self.last(self.head(x)), head=head, last=nn.Linear(3, 3))
    assert "linear" in read_on


def answers_of(forward, target=EXECUTORCH, **layers):
    """Names of the tensors that get more room than was seen."""
    config = QuantizationConfig(target=target.name)
    placement = look(behind_a_stem(forward, **layers), [inputs((3, 8, 8))], config).placement
    return {node.name for node in placement.answers}


def test_answers_are_what_is_behind_the_last_layer_unless_batch_norm_knows_it():
    head = nn.Conv2d(4, 2, 1)
    assert answers_of(lambda self, x: self.head(F.relu(x)), head=head) == {"conv2d_1"}
    assert answers_of(lambda self, x: F.relu(self.head(x)) + 1, head=head) == {"relu"}
    assert answers_of(lambda self, x: self.head(x).softmax(1), ONNXRUNTIME, head=head) == {"conv2d_1"}
    assert answers_of(lambda self, x: self.head(x), ONNXRUNTIME, head=head) == set()
    assert answers_of(lambda self, x: F.relu(x)) == set()
    assert answers_of(lambda self, x: F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1)) == set()


def test_a_sum_at_the_end_is_quantized():
    source, _, left = placed(lambda self, x: x + self.other(x), other=nn.Conv2d(4, 4, 1))
    assert "add" in source
    assert left == []


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.relu, "relu"),
        (F.relu6, "relu6"),
        (lambda x: F.hardtanh(x, 0.0, 6.0), "hardtanh"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x.clamp(0, 6), "clamp"),
    ],
)
def test_what_unsigned_saturation_does_is_absorbed(activation, name):
    source, absorbed, left = placed(lambda self, x: self.head(activation(x)), head=nn.Conv2d(4, 4, 1))
    assert len(absorbed) == 1
    assert left == []
    assert source[absorbed[0]] == absorbed[0]
    assert "conv2d" not in source


@pytest.mark.parametrize(
    "activation",
    [
        F.hardtanh,
        lambda x: x.clamp(0, 3),
        lambda x: x.clamp(-1, 6),
        lambda x: F.leaky_relu(x),
        lambda x: x.clamp(max=6),
    ],
)
def test_what_saturation_does_not_do_is_kept(activation):
    source, absorbed, left = placed(lambda self, x: self.head(activation(x)), head=nn.Conv2d(4, 4, 1))
    assert absorbed == []
    assert len(left) == 1
    assert "conv2d" in source


def test_an_activation_of_a_tensor_that_others_read_is_not_taken_for_the_tensor():
    source, _, _ = placed(
        lambda self, x: self.head(F.relu(x)) + self.other(F.silu(x)), head=nn.Conv2d(4, 4, 1), other=nn.Conv2d(4, 4, 1)
    )
    assert source["conv2d"] == source["relu"] == "conv2d"


def test_pools_and_reshapes_share_the_range_of_their_input():
    source, _, left = placed(
        lambda self, x: self.head(F.max_pool2d(F.relu(x), 2).flatten(1)), head=nn.Linear(4 * 4 * 4, 5)
    )
    assert source["max_pool2d"] == source["flatten"] == source["relu"] == "relu"
    assert left == []


def test_an_average_has_a_range_of_its_own():
    source, _, left = placed(lambda self, x: self.head(F.avg_pool2d(F.relu(x), 2)), head=nn.Conv2d(4, 4, 1))
    assert source["avg_pool2d"] == "avg_pool2d"
    assert left == []


def test_zero_padding_before_a_convolution_becomes_part_of_it():
    source, _, left = placed(lambda self, x: self.head(F.pad(F.relu(x), (0, 1, 0, 1))), head=nn.Conv2d(4, 4, 2))
    assert "relu" in source
    assert "pad" not in source
    assert left == []


def test_padding_that_others_read_too_stays_in_float():
    def forward(self, x):
        padded = F.pad(F.relu(x), (0, 1, 0, 1))
        return self.head(padded) + padded[..., :-1, :-1]

    source, _, left = placed(forward, head=nn.Conv2d(4, 4, 2))
    assert "pad" in source
    assert "pad" in left


@pytest.mark.parametrize("arguments", [{"value": 1.0}, {"mode": "reflect"}])
def test_other_padding_stays_in_float(arguments):
    source, _, left = placed(
        lambda self, x: self.head(F.pad(F.relu(x), (0, 1, 0, 1), **arguments)), head=nn.Conv2d(4, 4, 2)
    )
    assert left == ["pad"]
    assert "pad" in source


def test_sums_with_a_factor_or_a_constant_have_no_integer_kernel():
    _, _, left = placed(lambda self, x: torch.add(x, self.head(x), alpha=2), head=nn.Conv2d(4, 4, 1))
    assert left == ["add"]
    source, _, left = placed(lambda self, x: self.head(x + 1.0), head=nn.Conv2d(4, 4, 1))
    assert left == ["add"]
    assert "add" in source


def test_what_has_no_integer_kernel_is_reported():
    _, _, left = placed(lambda self, x: self.head(F.silu(x)), head=nn.Conv2d(4, 4, 1))
    assert left == ["silu"]
    module = ready("after-pool")
    assert in_float(module, place(module), OPENVINO) == ["batch_norm"]


def test_a_layer_with_weights_computed_from_its_input_has_no_integer_kernel():
    def forward(self, x):
        return F.conv2d(x, self.head.weight * x.mean()) + x

    source, _, left = placed(forward, head=nn.Conv2d(4, 4, 1))
    assert "conv2d_1" in left
    assert "mul" not in source


def test_a_layer_with_weights_computed_from_stored_ones_has_one():
    source, _, left = placed(lambda self, x: F.conv2d(x, self.head.weight * 2) + x, head=nn.Conv2d(4, 4, 1))
    assert "conv2d_1" not in left
    assert "conv2d_1" in source


def test_concatenation_reads_and_writes_integers():
    module = ready("after-concat")
    node = next(node for node in module.graph.nodes if node.name == "cat")
    source = place(module).source
    assert integer_inputs(node) == list(node.args[0])
    assert all(part in source for part in node.args[0])
    assert node in source


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.mean((2, 3)).gather(1, torch.cat([x.mean((2, 3)).argmax(1, True)] * 2, 1)),
        lambda self, x: torch.where(torch.cat([x > 0, x > 1], 1), 1.0, 0.0),
    ],
)
def test_what_holds_no_floats_is_not_quantized_where_it_is_joined(forward):
    source, _, _ = placed(forward)
    assert not any(name.startswith("cat") for name in source)
