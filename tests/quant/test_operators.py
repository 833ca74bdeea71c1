"""The operators of quantized graphs, beside what torch computes."""

import torch

from dffg.quant.operators import GLOBAL_AVERAGE_POOL


def test_global_pooling_is_a_mean_and_so_is_its_gradient():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(GLOBAL_AVERAGE_POOL(x), x.mean((2, 3), keepdim=True))
    assert torch.autograd.gradcheck(GLOBAL_AVERAGE_POOL, (x,))
