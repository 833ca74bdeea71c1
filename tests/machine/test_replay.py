"""Work that is recorded on CUDA, and called elsewhere."""

import pytest
import torch

from dffg.machine.replay import Replayed
from tests.machine.test_device import needs_cuda

CALLS = 8
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


class Counted:
    """Work that knows how often Python has run it."""

    def __init__(self, work):
        self.work, self.calls = work, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.work(*inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_works_on_its_own_values(device):
    total = torch.zeros(3, device=device)

    def work(values, more):
        total.add_(values)
        return values * more, total + 0

    counted = Counted(work)
    replayed = Replayed(counted)
    results = [replayed(torch.full((3,), float(i), device=device), torch.ones(3, device=device)) for i in range(CALLS)]
    assert [float(product[0]) for product, _ in results] == list(range(CALLS))
    assert [float(sums[0]) for _, sums in results] == [sum(range(i + 1)) for i in range(CALLS)]
    assert counted.calls == (CALLS if device == "cpu" else 4)


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_has_its_own_random_numbers(device):
    replayed = Replayed(lambda values: (values + torch.rand_like(values),))
    torch.manual_seed(0)
    drawn = {float(replayed(torch.zeros((), device=device))[0]) for _ in range(CALLS)}
    assert len(drawn) == CALLS


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_is_part_of_the_work(device):
    def work(values):
        values = values.detach().requires_grad_(True)
        return torch.autograd.grad(values.square().sum(), values)

    replayed = Replayed(work)
    for i in range(CALLS):
        assert replayed(torch.full((2,), float(i), device=device))[0].tolist() == [2.0 * i] * 2


@pytest.mark.parametrize("device", DEVICES)
def test_other_shapes_are_called(device):
    replayed = Replayed(lambda values: (values.sum(),))
    for size in [2] * CALLS + [3, 2]:
        assert float(replayed(torch.ones(size, device=device))[0]) == size


@pytest.mark.parametrize("device", DEVICES)
def test_work_that_asks_for_a_value_is_called(device):
    counted = Counted(lambda values: (values * float(values.sum()),))
    replayed = Replayed(counted)
    for i in range(CALLS):
        assert float(replayed(torch.full((1,), float(i), device=device))[0]) == i * i
    assert counted.calls >= CALLS
