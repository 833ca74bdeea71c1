"""What a quantized graph says of its layers."""

import pytest
import torch
from torch import nn

from dffg.export.verification import layer_sqnr_db
from dffg.quant.decide import simulate
from tests.networks import inputs
from tests.quant.test_placement import behind_a_stem

IMAGES = inputs((3, 8, 8), 8)


def quantized(forward, **layers):
    return simulate(behind_a_stem(forward, **layers), [IMAGES])


def gated(self, x):
    left, right = self.wide(x).chunk(2, 1)
    return left * right


def recurrent(self, x):
    return self.lstm(self.wide(x.mean(2).transpose(1, 2)))[0][:, -1]


def chosen(self, x):
    return self.wide(x.mean((2, 3))).topk(2)[0]


def masked(self, x):
    return torch.where(self.wide(x) > 0, x, 0.1 * x)


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (gated, {"wide": nn.Conv2d(4, 8, 1)}),
        (recurrent, {"wide": nn.Linear(4, 4), "lstm": nn.LSTM(4, 3, batch_first=True)}),
        (chosen, {"wide": nn.Linear(4, 5)}),
        (masked, {"wide": nn.Conv2d(4, 4, 1)}),
    ],
)
def test_a_layer_before_what_gives_no_tensor_of_floats_carries_its_result_itself(forward, layers):
    found = quantized(forward, **layers)
    last = found.layers[-1]
    assert (last.name, last.result) == ("wide", last.node)
    ratios = layer_sqnr_db(found, IMAGES)
    assert list(ratios) == ["stem.0", "wide"]
    # 8 bits
    assert all(25 < ratio < 60 for ratio in ratios.values())


def three_calls(self, x):
    for _ in range(3):
        x = torch.relu(self.conv(x))
    return self.head(x.mean((2, 3)))


def test_every_call_of_a_layer_is_told_apart():
    found = quantized(three_calls, conv=nn.Conv2d(4, 4, 3, padding=1), head=nn.Linear(4, 3))
    names = ["stem.0", "conv", "conv (2)", "conv (3)", "head"]
    assert [layer.name for layer in found.layers] == names
    ratios, ranges = layer_sqnr_db(found, IMAGES), {layer.name: layer.input_range for layer in found.layers}
    assert list(ratios) == names
    # What one call gives, the next reads.
    assert len({ratios[name] for name in names}) == len({ranges[name] for name in names}) == 5


def test_a_number_that_another_layer_has_as_its_name_is_passed_over():
    def forward(self, x):
        return self.head(self.conv(getattr(self, "conv (2)")(self.conv(x))).mean((2, 3)))

    convolutions = {name: nn.Conv2d(4, 4, 1) for name in ("conv", "conv (2)")}
    names = [layer.name for layer in quantized(forward, **convolutions, head=nn.Linear(4, 3)).layers]
    assert names == ["stem.0", "conv", "conv (2)", "conv (3)", "head"]
