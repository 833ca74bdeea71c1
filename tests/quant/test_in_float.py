"""What is left in float, and the reason that is given for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.graph.fold import fold_batch_norms
from dffg.quant.in_float import float_operations
from dffg.quant.placement import place, prepare
from dffg.targets import EXECUTORCH, ONNXRUNTIME, OPENVINO, TENSORRT
from tests.quant.test_placement import behind_a_stem

ATTENTION = "scaled_dot_product_attention"
NO_KERNEL = "no integer kernel known in onnxruntime"
OUTPUT = "output of the network, and onnxruntime convolves integers to integers only"
PADDING = "padding with more than zeros, or for more than convolutions"
NOT_TWO = "operands that are not two activations, or a factor beside them"
COMPUTED = "weight or bias that is computed, not stored"
UNREAD = "result that nothing reads as integers"
NORM = "BatchNorm without a layer of its own to fold into"
ACTIVATIONS = "product of activations, none of them a weight"
PRODUCT = "matrix product that is no linear layer"
RECURRENT = "recurrent: what it carries from step to step is not quantized"


def reasons(forward, target=ONNXRUNTIME, **layers):
    module = prepare(fold_batch_norms(behind_a_stem(forward, **layers)))
    return float_operations(module, place(module, target), target)


def conv():
    return nn.Conv2d(4, 4, 1)


def linear():
    return nn.Linear(4, 3)


def attention(self, x):
    patches = x.flatten(2)
    return self.head(F.scaled_dot_product_attention(patches, patches, patches).unflatten(2, (8, 8)).mean((2, 3)))


def stored_product(self, x):
    return self.head((x @ self.table.weight.reshape(1, 8, 8)).mean((2, 3)))


def recurrent(self, x):
    return self.head(self.gru(x.flatten(2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    ("operation", "reason", "forward", "layers"),
    [
        ("silu (silu)", NO_KERNEL, lambda self, x: self.head(F.silu(x)) + x, {"head": conv()}),
        ("conv2d_1 (conv2d)", OUTPUT, lambda self, x: self.head(x), {"head": conv()}),
        ("conv2d_1 (conv2d)", OUTPUT, lambda self, x: F.relu(self.head(x)), {"head": conv()}),
        ("conv2d_1 (conv2d)", COMPUTED, lambda self, x: F.conv2d(x, self.head.weight * x.mean()) + x, {"head": conv()}),
        ("relu (relu)", UNREAD, lambda self, x: F.relu(self.head(x.mean((2, 3)))), {"head": linear()}),
        ("add (add)", NOT_TWO, lambda self, x: self.head(x + 1.0) + x, {"head": conv()}),
        ("add (add)", NOT_TWO, lambda self, x: torch.add(x, self.head(x), alpha=2), {"head": conv()}),
        ("pad (pad)", PADDING, lambda self, x: self.head(F.pad(x, (1, 1, 1, 1), "reflect")), {"head": conv()}),
        ("batch_norm_1 (batch_norm)", NORM, lambda self, x: self.norm(F.relu(x)), {"norm": nn.BatchNorm2d(4)}),
        (f"{ATTENTION} ({ATTENTION})", ACTIVATIONS, attention, {"head": linear()}),
        ("matmul (matmul)", PRODUCT, stored_product, {"head": linear(), "table": nn.Linear(8, 8)}),
        ("gru (gru)", RECURRENT, recurrent, {"head": linear(), "gru": nn.GRU(4, 4, batch_first=True)}),
    ],
)
def test_every_operation_has_its_reason(operation, reason, forward, layers):
    assert reasons(forward, **layers)[operation] == reason


def test_nothing_is_left_where_all_is_integers():
    assert reasons(lambda self, x: self.head(F.relu(x)) + x, head=conv()) == {}


@pytest.mark.parametrize("target", [OPENVINO, TENSORRT, EXECUTORCH])
def test_other_runtimes_convolve_to_their_outputs(target):
    assert reasons(lambda self, x: self.head(F.relu(x)), target, head=conv()) == {}


def test_a_convolution_that_is_read_on_is_in_integers_though_it_is_an_output():
    def forward(self, x):
        map = self.head(x)
        return map, self.scores(map.mean((2, 3)))

    assert reasons(forward, head=conv(), scores=linear()) == {}


def test_products_of_activations_are_float_in_tensorrt():
    left = reasons(lambda self, x: self.head(x * F.relu(x)), TENSORRT, head=conv())
    assert left["mul (mul)"] == "no integer kernel known in tensorrt"
