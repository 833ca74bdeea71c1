"""Padding that became a part of a kernel: the same answer, without the copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import aten, calls
from dffg.graph.padding import absorb_padding_
from dffg.spec import ImageSpec
from tests.networks import inputs, randomize


class Padded(nn.Module):
    """A convolution, zeros (or something else) around its result, a convolution of that."""

    def __init__(self, pads, *, kernel=3, stride=2, groups=4, value=0.0, mode="constant", **options):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, kernel, stride=stride, groups=groups, **options)
        self.pads, self.options = pads, {"mode": mode} if mode != "constant" else {"value": value}

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        return self.conv(F.pad(x, self.pads, **self.options))


def rewritten(model, shape=(3, 9, 10)):
    """The folded graph, the same with padding absorbed, and how many paddings are left."""
    captured = capture(randomize(model), spec=ImageSpec(shape=shape))
    plain, changed = fold_batch_norms(captured), fold_batch_norms(captured)
    absorb_padding_(changed)
    return plain, changed, sum(calls(node, aten.pad.default) for node in changed.graph.nodes)


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 2, 0, 1), (0, 2, 1, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), ((3, 1), (1, 2))])
@pytest.mark.parametrize("bias", [True, False])
def test_padding_becomes_part_of_the_kernel(pads, kernel, stride, bias):
    plain, changed, left = rewritten(Padded(pads, kernel=kernel, stride=stride, bias=bias))
    assert left == 0
    images = inputs((3, 9, 10))
    torch.testing.assert_close(changed(images), plain(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        Padded((1, 0, 1, 0)),
        Padded((-1, 1, 0, 1)),
        Padded((0, 1, 0, 1), value=0.5),
        Padded((0, 1, 0, 1), mode="replicate"),
        Padded((0, 1, 0, 1), groups=1),
        Padded((0, 1, 0, 1), padding=1),
        Padded((0, 1, 0, 1), dilation=2),
        Padded((0, 1)),
    ],
    ids=["more-before", "cropped", "not-zero", "replicated", "dense", "twice", "dilated", "one-side"],
)
def test_other_padding_stays(model):
    plain, changed, left = rewritten(model)
    images = inputs((3, 9, 10))
    assert torch.equal(changed(images), plain(images))
    assert left == sum(calls(node, aten.pad.default) for node in plain.graph.nodes) or "replicate" in str(model.options)
