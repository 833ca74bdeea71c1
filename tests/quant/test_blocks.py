import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.quant.blocks import find_blocks, joined, work_of
from dffg.quant.placement import prepare
from dffg.quant.widths import quantized_layers
from dffg.spec import ImageSpec
from tests.networks import NETWORKS, captured, randomize


def module_of(name):
    return prepare(fold_batch_norms(captured(name)))


def blocks_of(model, shape=(3, 8, 8)):
    return find_blocks(prepare(fold_batch_norms(capture(randomize(model), spec=ImageSpec(shape=shape)))))


def sizes(model):
    return [len(block.layers) for block in blocks_of(model)]


def layer(channels, out, **options):
    return nn.Sequential(nn.Conv2d(channels, out, bias=False, **options), nn.BatchNorm2d(out), nn.ReLU())


class Shortcut(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return F.relu(x + self.layers(x))


class Viewed(nn.Module):
    """What asks its input for the batch, as torch.export writes every `x.size(0)`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(layer(3, 4, kernel_size=1), layer(4, 4, kernel_size=1))
        self.head = nn.Linear(256, 5)

    def forward(self, x):
        x = self.layers(x)
        return self.head(x.view(x.size(0), -1))


def test_a_network_that_mentions_its_batch_is_not_one_block():
    assert sizes(Viewed()) == [1, 1, 1]


def depthwise(channels):
    return layer(channels, channels, kernel_size=3, padding=1, groups=channels)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_a_chain_that_holds_every_layer_once(name):
    module = module_of(name)
    blocks = find_blocks(module)
    assert [name for block in blocks for name in block.layers] == [node.name for node in quantized_layers(module)]
    assert [block.input for block in blocks[1:]] == [block.output for block in blocks[:-1]]
    assert next(node for node in module.graph.nodes if node.op == "placeholder").name == blocks[0].input


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_but_its_input_enters_a_block(name):
    """Everything between two ends is computed from the first: an oracle by reachability instead of by order."""
    module = module_of(name)
    nodes = {node.name: node for node in module.graph.nodes}
    for block in find_blocks(module):
        waiting, seen = [nodes[block.output]], set()
        while waiting:
            node = waiting.pop()
            if node.name == block.input or node in seen:
                continue
            seen.add(node)
            assert node.op != "placeholder"
            waiting.extend(node.all_input_nodes)


def test_a_shortcut_holds_its_layers_together():
    pair = Shortcut(layer(8, 8, kernel_size=3, padding=1), layer(8, 8, kernel_size=3, padding=1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert sizes(nn.Sequential(layer(3, 8, kernel_size=3), pair, pair, head)) == [1, 2, 2, 1]


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(6)])
def test_a_block_ends_before_its_maps_are_pooled(pool):
    head = nn.Sequential(layer(3, 8, kernel_size=3), pool, nn.Flatten())
    *_, before, last = blocks_of(nn.Sequential(layer(3, 3, kernel_size=1), head, nn.Linear(8, 4)))
    assert before.output.startswith("relu")
    assert last.input == before.output
    assert len(last.layers) == 1


def test_pooling_of_parts_and_of_the_answer_joins_the_block_before():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(layer(3, 8, kernel_size=3), nn.MaxPool2d(2), layer(8, 8, kernel_size=1), head)
    first, last = blocks_of(network)
    assert first.output.startswith("max_pool")
    assert last.output.startswith(("view", "flatten", "reshape"))


def test_an_inverted_residual_without_shortcut_is_one_block():
    inverted = nn.Sequential(layer(8, 16, kernel_size=1), depthwise(16), layer(16, 8, kernel_size=1))
    assert sizes(nn.Sequential(layer(3, 8, kernel_size=3), inverted, inverted)) == [1, 3, 3]


def test_a_depthwise_convolution_is_joined_with_the_pointwise_one_behind_it():
    separable = nn.Sequential(depthwise(8), layer(8, 8, kernel_size=1))
    assert sizes(nn.Sequential(layer(3, 8, kernel_size=3), separable, separable)) == [1, 2, 2]


def test_a_gate_between_depthwise_and_pointwise_stays_in_the_block():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))

    inverted = nn.Sequential(layer(8, 8, kernel_size=1), depthwise(8), Gate(), layer(8, 8, kernel_size=1))
    assert sizes(nn.Sequential(layer(3, 8, kernel_size=3), inverted)) == [1, 5]


class Parts(nn.Module):
    """Everything passes through a split; each half has a layer of its own."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        left, right = x.split(4, 1)
        return torch.cat([self.left(left), self.right(right)], 1)


class Steps(nn.Module):
    """Everything passes through a recurrence, which returns several tensors."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x.mean(2).transpose(1, 2))[0][:, -1]


def test_a_block_neither_ends_nor_begins_at_several_tensors():
    first, parts, last = blocks_of(nn.Sequential(layer(3, 8, kernel_size=3), Parts(), layer(8, 8, kernel_size=1)))
    assert (first.output, parts.output) == ("relu", "cat")
    assert len(parts.layers) == 2
    assert parts.input == "relu"
    first, last = blocks_of(nn.Sequential(layer(3, 8, kernel_size=3), Steps(), nn.Linear(4, 5)))
    assert last.input == first.output
    assert not first.output.startswith("lstm")


def test_the_work_of_a_recurrence_is_a_number_although_its_zeros_have_the_batch_as_second_axis():
    network = capture(
        randomize(nn.Sequential(layer(3, 8, kernel_size=3), Steps(), nn.Linear(4, 5))), input_shape=(3, 8, 8)
    )
    module = prepare(fold_batch_norms(network))
    zeros = [node.meta["val"] for node in module.graph.nodes if node.target is torch.ops.aten.zeros.default]
    # Of both states at once: what is computed twice is merged.
    assert [isinstance(value.shape[1], int) for value in zeros] == [False]
    assert [type(work_of(module, block)) for block in find_blocks(module)] == [int, int]


@pytest.mark.parametrize(("together", "expected"), [(1, [1, 2, 2, 1]), (2, [3, 3]), (3, [5, 1]), (9, [6])])
def test_joined_blocks_are_a_chain_too(together, expected):
    pair = Shortcut(layer(8, 8, kernel_size=3, padding=1), layer(8, 8, kernel_size=3, padding=1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    blocks = blocks_of(nn.Sequential(layer(3, 8, kernel_size=3), pair, pair, head))
    parts = joined(blocks, together)
    assert [len(part.layers) for part in parts] == expected
    assert [name for part in parts for name in part.layers] == [name for block in blocks for name in block.layers]
    assert [parts[0].input, *(part.output for part in parts[:-1])] == [part.input for part in parts]
    assert parts[-1].output == blocks[-1].output
