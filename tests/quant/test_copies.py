"""What a layer and a shortcut read both has two widths."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.config import FinetuneConfig, QuantizationConfig
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import count_kernels
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.quant.decide import decide, prepare_float, simulate
from dffg.quant.finetune import finetune
from dffg.quant.operators import COPY
from dffg.quant.placement import place
from dffg.quant.stored import load_parameters, save_parameters
from dffg.quant.widths import input_tensor, quantized_layers, uniform_widths
from dffg.spec import ImageSpec
from tests.networks import InvertedResidual, captured, inputs, randomize

SPEC = ImageSpec(shape=(3, 16, 16))


class Chain(nn.Module):
    """Three residual blocks: padding before a depthwise layer, a pooled path, and ReLU behind the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, groups=8)
        self.second = nn.Conv2d(8, 8, 1)
        self.third = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.first(F.pad(x, (1, 1, 1, 1)))
        x = x + self.second(F.relu(x))
        x = F.relu(x + self.third(x))
        return self.head(x.mean((2, 3)))


class Pooled(nn.Module):
    """A residual block behind max pooling, whose result has the range of what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        return self.head(F.relu(x + self.first(x)).mean((2, 3)))


def copied(network, **options):
    """The float graph with its copies, by the tensor that is copied."""
    module, _ = prepare_float(network, QuantizationConfig(equalize="none", **options))
    return module, {node.args[0].name: node for node in module.graph.nodes if node.target is COPY}


def chain():
    return capture(randomize(Chain()), spec=SPEC)


def test_a_copy_is_no_operation_that_was_left_in_float():
    decided = decide(chain(), [inputs(SPEC.shape, 8)], QuantizationConfig(bits="W4A4"))
    assert decided.insert().float_operations == {}


def test_layers_read_a_narrow_copy_of_what_shortcuts_keep():
    module, copies = copied(chain(), bits="W4A4")
    placement = place(module)
    widths = uniform_widths(module, placement, QuantizationConfig(bits="W4A4"))
    assert len(copies) == 3
    for tensor, copy in copies.items():
        # A ReLU behind the copy is rounded in its place.
        (reader,) = copy.users
        read = reader if reader.target is torch.ops.aten.relu.default else copy
        assert (widths.activations[tensor], widths.activations[read.name]) == (8, 4)
        assert copy.meta["val"].shape == copy.args[0].meta["val"].shape
    assert {widths.activations[input_tensor(layer, placement).name] for layer in quantized_layers(module)} == {4}
    assert all(
        user.target is torch.ops.aten.add.Tensor or user.target is COPY for t in copies for user in users(module, t)
    )


def test_a_sum_keeps_its_bits_where_both_of_its_readers_are_behind_max_pooling():
    module, copies = copied(capture(randomize(Pooled()), spec=SPEC), bits="W4A4")
    placement = place(module)
    widths = uniform_widths(module, placement, QuantizationConfig(bits="W4A4"))
    assert list(copies) == ["max_pool2d"]
    assert {node.name: widths.activations[source.name] for node, source in placement.source.items()} == {
        "x": 4,
        "relu": 8,
        "max_pool2d": 8,
        "max_pool2d_narrow": 4,
        "conv2d_1": 8,
        "relu_1": 8,
        "global_average_pool_default": 4,
        "flatten_using_ints": 4,
    }


def test_what_was_decided_behind_max_pooling_is_stored_read_and_trained_on(tmp_path):
    images, config = inputs(SPEC.shape, 8), QuantizationConfig(bits="W4A4", equalize="none")
    found = decide(capture(randomize(Pooled()), spec=SPEC), [images], config)
    save_parameters(found.parameters, tmp_path / "parameters.npz")
    parameters = load_parameters(tmp_path / "parameters.npz", found.float_module)
    tuned = finetune(found.float_module, parameters, images, FinetuneConfig(iterations=1, batch_size=8))
    assert (tuned.activations["relu"].bits, tuned.activations["max_pool2d_narrow"].bits) == (8, 4)


def users(module, name):
    return next(node for node in module.graph.nodes if node.name == name).users


def test_the_float_answer_is_the_same():
    x = inputs(SPEC.shape, 3)
    with torch.no_grad():
        plain, narrow = (copied(chain(), bits=bits)[0](x) for bits in ("W8A8", "W4A4"))
    assert torch.equal(plain, narrow)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": "W8A8"},
        {"bits": "W2A8"},
        {"bits": "W4A4", "other_bits": 4},
        {"bits": "mixed", "budget": "bits=4"},
        {"bits": "mixed", "budget": "bops=0.2x"},
    ],
)
def test_there_is_no_copy_where_it_would_be_no_narrower(options):
    assert not copied(chain(), **options)[1]


def test_mixed_weights_beside_narrow_inputs_have_copies():
    assert len(copied(chain(), bits="mixed", budget="bits=4", activation_bits=4)[1]) == 3


def test_nothing_is_copied_that_only_layers_read():
    assert not copied(captured("conv"), bits="W4A4")[1]


def test_a_wide_outer_layer_reads_the_tensor_itself():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.second, self.middle, self.last = (nn.Conv2d(8, 8, 1) for _ in range(3))

        def forward(self, x):
            x = self.second(self.norm(self.first(x)))
            y = x + self.middle(x)
            return y + self.last(y)

    module, copies = copied(capture(randomize(Ends()), spec=SPEC), bits="W4A4", first_last_bits=8)
    _, second, middle, last = quantized_layers(module)
    assert list(copies) == [second.name]
    assert middle.args[0].target is COPY
    assert last.args[0].target is torch.ops.aten.add.Tensor


@pytest.mark.parametrize("network", [Chain, InvertedResidual, Pooled])
@pytest.mark.parametrize("bits", ["W4A4", "W8A2", "W6A6"])
def test_onnxruntime_computes_the_same_integers(tmp_path, network, bits):
    images = inputs(SPEC.shape, 16)
    quantized = simulate(capture(randomize(network()), spec=SPEC), [images], QuantizationConfig(bits=bits))
    write_quantized(quantized, SPEC, tmp_path / "model.onnx")
    match = match_simulation(quantized, tmp_path / "model.onnx", inputs(SPEC.shape, 16, seed=1))
    assert match.holds
    assert count_kernels(tmp_path / "model.onnx").float == 0


def test_bits_of_the_shortcut_bring_the_answer_nearer_to_float():
    network, images, new = chain(), inputs(SPEC.shape, 16), inputs(SPEC.shape, 64, seed=1)
    errors = {}
    for other_bits in (3, 8):
        config = QuantizationConfig(bits="W8A3", other_bits=other_bits, equalize="none")
        quantized = simulate(network, [images], config)
        with torch.no_grad():
            errors[other_bits] = (quantized.module(new) - quantized.float_module(new)).square().mean()
    assert errors[8] < 0.8 * errors[3]
