"""The tables of the terminal."""

from dffg.config import SynthesisConfig
from dffg.report.inspection import inspect
from dffg.report.terminal import render_inspection
from tests.networks import captured
from tests.report.test_result import shown


def test_what_is_left_in_float_is_shown_with_its_reason():
    found = inspect(captured("after-pool"), SynthesisConfig(count=4))
    assert found.float_operations == tuple(found.float_reasons) == ("batch_norm (batch_norm)", "conv2d_1 (conv2d)")
    lines = [line.strip() for line in shown(render_inspection(found)).splitlines()]
    assert "left in float  BatchNorm without a layer of its own to fold into: batch_norm (batch_norm)" in lines
    assert "output of the network, and onnxruntime convolves integers to integers only: conv2d_1 (conv2d)" in lines
