"""Operators that keep little for their gradient: the same answers and gradients as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.captured import capture
from dffg.fold import fold_batch_norms
from dffg.graph import aten, copy_module
from dffg.images import ImageSpec
from dffg.lean import Scratch, clipped, convolved, make_lean
from tests.networks import inputs, randomize


class Mixed(nn.Module):
    """Clips that are read at once, later, twice, and by something that is no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1)])
        self.convs.extend(nn.Conv2d(4, 4, 3, padding=1, groups=groups) for groups in (2, 1, 4, 1, 2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.norm(self.convs[0](x)))
        x = F.relu6(self.convs[1](x))
        late, soon = F.hardtanh(self.convs[2](x), -0.5, 0.5), F.relu(self.convs[3](x))
        x = self.convs[4](soon) + self.convs[5](late)
        x = F.relu(x)
        return x * x.sigmoid()


def gradient_of(module, images):
    images = images.clone().requires_grad_(True)
    answer = module(images)
    return answer.detach(), torch.autograd.grad(answer.square().sum(), images)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_made_lean_has_the_same_answer_and_gradient(layout):
    captured = capture(randomize(Mixed()), spec=ImageSpec(shape=(3, 9, 8)))
    plain = fold_batch_norms(captured)
    lean = copy_module(plain)
    make_lean(lean)
    used = [node for node in lean.graph.nodes if node.target is clipped]
    assert [node.args[4] is not None for node in used] == [True, False, False, True, False]
    assert [node.args[3] for node in used] == [True, False, True, True, False]
    images = (3 * inputs((3, 9, 8))).contiguous(memory_format=layout)
    for _ in range(2):  # the second time in memory that was used before
        for found, expected in zip(gradient_of(lean, images), gradient_of(plain, images)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("convolution", "shape", "weight", "rest"),
    [
        (aten.conv1d.default, (2, 4, 9), (6, 2, 3), (None, [2], [1], [1], 2)),
        (aten.conv2d.default, (2, 4, 9, 7), (6, 4, 3, 1), (torch.ones(6), [2, 1], [1, 0], [2, 1])),
        (aten.conv2d.default, (2, 4, 9, 7), (6, 4, 1, 1), ()),
        (aten.conv2d.default, (2, 4, 9, 7), (4, 1, 3, 3), (None, [2], [1], [1], 4)),
        (aten.conv3d.default, (2, 4, 5, 5, 5), (3, 4, 2, 2, 2), (torch.ones(3), [2])),
    ],
)
def test_a_convolution_has_the_gradient_of_torchs(convolution, shape, weight, rest):
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(size, generator=generator) for size in (shape, weight))
    (answer, gradient), (expected, wanted) = (
        gradient_of(module, images)
        for module in (
            lambda x: convolved(Scratch(), convolution, x, weight, *rest),
            lambda x: convolution(x, weight, *rest),
        )
    )
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("owned", [False, True])
def test_the_gradient_that_arrives_is_written_over_only_where_it_is_owned(owned):
    values = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    arriving = torch.arange(5.0)
    (gradient,) = torch.autograd.grad(clipped(values, -1.0, 1.0, owned), values, arriving)
    assert gradient.tolist() == [0, 0, 2, 0, 0]
    assert (gradient.data_ptr() == arriving.data_ptr()) == owned
    assert arriving.tolist() == ([0, 0, 2, 0, 0] if owned else [0, 1, 2, 3, 4])


def test_what_is_kept_of_scratch_memory_is_found_out():
    """Autograd refuses to go on from values that were written over."""
    scratch = Scratch()
    values = torch.randn(6, requires_grad=True)
    first = clipped(values, 0.0, 1.0, False, scratch)
    kept = first * first
    clipped(values, 0.0, 2.0, False, scratch)
    with pytest.raises(RuntimeError, match="inplace"):
        kept.sum().backward()


def test_scratch_memory_is_used_again_and_grows():
    scratch, small = Scratch(), torch.zeros(2, 3)
    large = torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    first, second = scratch.like(large, large), scratch.like(small, small)
    assert first.data_ptr() == second.data_ptr()
    assert first.stride() == large.stride()
    assert scratch.like(torch.zeros(100), small).shape == (100,)
    assert scratch.like(small, small.double()).dtype == torch.float64
