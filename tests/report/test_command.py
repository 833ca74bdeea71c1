from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from dffg.config import GENERATORS, LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.report.command import needed_options, python_call
from dffg.spec import ImageSpec, JointSpec

CONFIGS = [
    SynthesisConfig(),
    SynthesisConfig(count=32, steps=8, seed=3, slack=0.0),
    SynthesisConfig(steps=8, burn_in=2, step_size=0.5),
    *(SynthesisConfig(generator=name) for name in GENERATORS),
    QuantizationConfig(),
    QuantizationConfig(bits="W4A4", first_last_bits=8),
    QuantizationConfig(bits="mixed", budget="size=0.5x"),
    LearningConfig(recipe="best", learning_seconds=3.5),
    LearningConfig().completed(QuantizationConfig(bits="W4A4")),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_needed_options_make_the_configuration_again(config):
    options = needed_options(config)
    assert type(config)(**options) == config
    for name in options:
        fewer = {key: value for key, value in options.items() if key != name}
        with contextlib.suppress(InputError):
            assert type(config)(**fewer) != config


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (SynthesisConfig(), {}),
        (SynthesisConfig(steps=8), {"steps": 8}),
        (SynthesisConfig(generator="zeroq"), {"generator": "zeroq"}),
        (QuantizationConfig(bits="W4A4"), {"bits": "W4A4"}),
        (QuantizationConfig(bits="mixed", budget="bits=4"), {"bits": "mixed", "budget": "bits=4"}),
    ],
    ids=repr,
)
def test_defaults_are_not_needed_even_those_that_depend_on_others(config, options):
    assert needed_options(config) == options


def test_a_call_makes_its_arguments_again():
    spec = ImageSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,))
    synthesis, quantization = SynthesisConfig(seed=5, steps=8), QuantizationConfig(bits="W4A8")
    text = python_call("quantize", "o'ut", spec=spec, synthesis=synthesis, quantization=quantization, learning=None)
    seen = {}

    class Recorded:
        ImageSpec, SynthesisConfig, QuantizationConfig = ImageSpec, SynthesisConfig, QuantizationConfig

        @staticmethod
        def quantize(*places, **arguments):
            seen.update(arguments, places=places)

    eval(text, {"dffg": Recorded, "model": "the model"})
    assert seen == {
        "places": ("the model", "o'ut"),
        "spec": spec,
        "synthesis": synthesis,
        "quantization": quantization,
    }


def test_text_shapes_and_several_inputs_are_written_as_they_are_given():
    spec = JointSpec.of([ImageSpec(shape=(3, 8, 8)), ImageSpec(shape=(4,), bounds=(-3.0, 3.0))])
    text = python_call("quantize", "out", spec=spec, input_shape=torch.Size([3, 8, 8]), target="open'vino")
    seen = {}
    recorded = SimpleNamespace(
        ImageSpec=ImageSpec, JointSpec=JointSpec, quantize=lambda *_, **given: seen.update(given)
    )
    eval(text, {"dffg": recorded, "model": "the model"})
    assert seen == {"spec": spec, "input_shape": (3, 8, 8), "target": "open'vino"}


def test_a_call_is_short_where_everything_is_default():
    text = python_call("quantize", "out", synthesis=SynthesisConfig(), evaluation=object(), calibration=None)
    assert text == "dffg.quantize(model, 'out', evaluation=evaluation)"
    assert python_call("finetune", "a", "b", steps=3, seed=0) == "dffg.finetune(model, 'a', 'b', steps=3, seed=0)"
