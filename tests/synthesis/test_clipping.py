"""Clips that write over the gradient that arrives: the same answers and gradients as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.graph.nodes import copy_module
from dffg.spec import ImageSpec
from dffg.synthesis.clipping import clipped, own_clips_
from tests.networks import inputs, randomize


class Mixed(nn.Module):
    """Clips that a convolution reads, another clip, two readers, and what is no maker of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1)])
        self.convs.extend(nn.Conv2d(4, 4, 3, padding=1, groups=groups) for groups in (2, 1, 4, 1, 2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.norm(self.convs[0](x)))
        x = F.relu6(self.convs[1](x))
        first, second = F.hardtanh(self.convs[2](x), -0.5, 0.5), F.relu(self.convs[3](x))
        x = self.convs[4](first) + self.convs[5](second)
        x = F.relu(x)
        return x * x.sigmoid()


def gradient_of(module, images):
    images = images.clone().requires_grad_(True)
    answer = module(images)
    return answer.detach(), torch.autograd.grad(answer.square().sum(), images)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_with_own_clips_has_the_same_answer_and_gradient(layout):
    plain = fold_batch_norms(capture(randomize(Mixed()), spec=ImageSpec(shape=(3, 9, 8))))
    own = copy_module(plain)
    own_clips_(own)
    assert [node.args[3] for node in own.graph.nodes if node.target is clipped] == [True, False, True, True, False]
    images = (3 * inputs((3, 9, 8))).contiguous(memory_format=layout)
    for found, expected in zip(gradient_of(own, images), gradient_of(plain, images)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("owned", [False, True])
def test_the_gradient_that_arrives_is_written_over_only_where_it_is_owned(owned):
    values = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    arriving = torch.arange(5.0)
    (gradient,) = torch.autograd.grad(clipped(values, -1.0, 1.0, owned), values, arriving)
    assert gradient.tolist() == [0, 0, 2, 0, 0]
    assert (gradient.data_ptr() == arriving.data_ptr()) == owned
    assert arriving.tolist() == ([0, 0, 2, 0, 0] if owned else [0, 1, 2, 3, 4])
