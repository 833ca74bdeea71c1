"""The tables of the terminal."""

from rich.console import Console

from dffg.config import SynthesisConfig
from dffg.inspection import inspect
from dffg.report.terminal import render_inspection
from tests.networks import captured


def test_what_is_left_in_float_is_shown_with_its_reason():
    found = inspect(captured("after-pool"), SynthesisConfig(count=4))
    assert found.float_operations == tuple(found.float_reasons) == ("batch_norm (batch_norm)", "conv2d_1 (conv2d)")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_inspection(found))
    lines = [line.strip() for line in capture.get().splitlines()]
    assert "left in float  BatchNorm without a layer of its own to fold into: batch_norm (batch_norm)" in lines
    assert "output of the network, and onnxruntime convolves integers to integers only: conv2d_1 (conv2d)" in lines
