import platform
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dffg.config import QuantizationConfig
from dffg.export import onnxruntime, openvino
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.machine.processor import adds_in_16_bits
from dffg.quant.decide import simulate
from dffg.spec import ImageSpec

IS_X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not IS_X86_LINUX, reason="the processor's instructions are read from /proc/cpuinfo")
def test_x86_processors_add_in_16_bits_where_they_have_no_vnni():
    assert adds_in_16_bits() == ("vnni" not in Path("/proc/cpuinfo").read_text())


class Large(nn.Module):
    """Weights of one sign, read from bright pixels: every pair of products is as large as it can be."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, groups=groups), nn.Conv2d(16, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(16), nn.Linear(8, 4)
        for layer in (self.first, self.second, self.last):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


BRIGHT = 1 - 0.1 * torch.rand(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def match(folder, runtime, groups, reduce_range):
    captured = capture(Large(groups).eval(), spec=ImageSpec(shape=(4, 6, 6)))
    quantized = simulate(captured, [BRIGHT], QuantizationConfig(reduce_range=reduce_range))
    path = folder / runtime.file
    runtime.write(quantized, captured.spec, path)
    return match_simulation(quantized, path, BRIGHT, runtime)


@pytest.mark.parametrize("runtime", [onnxruntime.RUNTIME, openvino.RUNTIME], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_within_a_reduced_range_nothing_overflows_on_any_processor(tmp_path, runtime, groups):
    assert match(tmp_path, runtime, groups, reduce_range=True).holds


@pytest.mark.skipif(not adds_in_16_bits(), reason="this processor adds products in 32 bits")
@pytest.mark.parametrize("runtime", [onnxruntime.RUNTIME, openvino.RUNTIME], ids=["onnxruntime", "openvino"])
def test_with_all_bits_products_overflow_and_verification_sees_it(tmp_path, runtime):
    assert not match(tmp_path, runtime, 1, reduce_range=False).holds
