"""The pass that ranges come from."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.graph.captured import capture
from dffg.quant import calibrate
from dffg.quant.calibrate import bears_bfloat16, observe
from dffg.quant.decide import decide
from tests.networks import captured

IMAGES = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """A sum whose digits bfloat16 loses where `far` is large."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.first, self.second, self.far = nn.Linear(8, 8), nn.Linear(8, 8), far

    def forward(self, x):
        return self.second(self.first(x) + self.far) - self.second(torch.full_like(x, self.far))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(calibrate, "has_fast_bfloat16", lambda device: True)


@pytest.mark.usefixtures("fast")
def test_a_network_bears_bfloat16_where_its_answer_does():
    assert bears_bfloat16(fx.symbolic_trace(Shifted(0.0)), IMAGES)
    assert not bears_bfloat16(fx.symbolic_trace(Shifted(1e4)), IMAGES)


@pytest.mark.usefixtures("fast")
def test_how_large_an_answer_is_decides_nothing():
    module = fx.symbolic_trace(Shifted(0.0))
    with torch.no_grad():
        module.second.weight.mul_(1e3)
    assert bears_bfloat16(module, IMAGES)


def test_no_network_bears_it_where_it_is_slow(monkeypatch):
    monkeypatch.setattr(calibrate, "has_fast_bfloat16", lambda device: False)
    assert not bears_bfloat16(fx.symbolic_trace(Shifted(0.0)), IMAGES)


@pytest.mark.usefixtures("fast")
def test_an_operator_without_a_kernel_for_it_is_run_in_float():
    class OnlyFloat(nn.Module):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("not implemented for 'BFloat16'")
            return x

    assert not bears_bfloat16(OnlyFloat(), IMAGES)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("exact", [False, True])
def test_exact_ranges_are_those_in_float_and_others_nearly(exact):
    module = fx.symbolic_trace(Shifted(0.0))
    with torch.no_grad():
        values = module.first(IMAGES)
    seen = observe(module, ["first"], IMAGES.split(2), exact=exact)["first"]
    assert (seen.high == float(values.max()) and seen.low == float(values.min())) == exact
    assert seen.high == pytest.approx(float(values.max()), rel=0.02)


@pytest.mark.parametrize("ranges", ["sigma", "minmax", "mse", "lp", "percentile"])
def test_what_an_activation_clips_is_in_no_range(ranges):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    nn.init.constant_(model[1].weight, 5.0)
    images = torch.randn(16, 3, 8, 8)
    config = QuantizationConfig(activation_ranges=ranges)
    decided = decide(capture(model, input_shape=(3, 8, 8)), [images], config)
    low, high = decided.parameters.activations["hardtanh"].range
    assert low == 0
    assert 5 < high <= 6.001


def test_images_that_are_no_numbers_are_refused_in_one_line():
    module = captured("conv").module
    names = [node.name for node in module.graph.nodes if node.op == "call_function"]
    with pytest.raises(InputError) as raised:
        observe(module, names, [torch.full((1, *captured("conv").spec.shape), torch.nan)])
    assert str(raised.value) == (
        "calibration images lead to NaN or infinite activations; check the images and the network."
    )
