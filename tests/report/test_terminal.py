"""The tables of the terminal."""

from dataclasses import replace

from dffg.config import SynthesisConfig
from dffg.pipeline.inspect import inspect
from dffg.report.terminal import render_inspection
from dffg.spec import ImageSpec, JointSpec
from tests.networks import captured
from tests.report.test_result import shown


def test_what_is_left_in_float_is_shown_with_its_reason():
    found = inspect(captured("after-pool"), SynthesisConfig(count=4))
    assert found.float_operations == tuple(found.float_reasons) == ("batch_norm (batch_norm)", "conv2d_1 (conv2d)")
    lines = [line.strip() for line in shown(render_inspection(found)).splitlines()]
    assert "left in float  BatchNorm without a layer of its own to fold into: batch_norm (batch_norm)" in lines
    assert "output of the network, and onnxruntime convolves integers to integers only: conv2d_1 (conv2d)" in lines


def test_every_one_of_several_inputs_is_described():
    picture = ImageSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,), source="a")
    features = ImageSpec(shape=(5,), bounds=(-1.0, 2.0), source="b")
    found = replace(inspect(captured("after-pool"), SynthesisConfig(count=4)), input=JointSpec.of([picture, features]))
    lines = [line.strip() for line in shown(render_inspection(found)).splitlines()]
    assert "input          3x8x8, mean (0.5,), std (0.25,), bounds (0.0, 1.0) (a)" in lines
    assert "5, mean (0.0,), std (1.0,), bounds (-1.0, 2.0) (b)" in lines


def test_the_time_of_other_generators_has_held_out_images_of_ours_in_it():
    found = inspect(captured("after-pool"), SynthesisConfig(generator="zeroq", steps=5, count=100))
    assert found.estimated_seconds == (2 * 5 + 16) * found.seconds_per_pass
