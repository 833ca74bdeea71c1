"""How a result was made, as a line that makes it again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.spec import ImageSpec, JointSpec

Config = SynthesisConfig | QuantizationConfig | LearningConfig


def needed_options(config: Config) -> dict[str, Any]:
    """The options that have to be given so that all others, at their defaults, make this configuration."""
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    for name in tuple(options):
        others = {key: value for key, value in options.items() if key != name}
        if _makes(others, config):
            options = others
    return options


def _makes(options: dict[str, Any], config: Config) -> bool:
    try:
        return type(config)(**options) == config
    except InputError:
        return False


def python_call(function: str, *places: str | Path, **arguments: Any) -> str:
    """The call `dffg.function(model, *places, ...)` as text, without the arguments that are None.

    Configurations are written with the options they need, or not at all; data by the argument's name, as the model.
    """
    written = {name: _written(name, value) for name, value in arguments.items()}
    words = ["model", *(repr(str(place)) for place in places)]
    words += [f"{name}={text}" for name, text in written.items() if text]
    return f"dffg.{function}({', '.join(words)})"


def _written(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Config):
        options = ", ".join(f"{option}={entry!r}" for option, entry in needed_options(value).items())
        return f"dffg.{type(value).__name__}({options})" if options else ""
    if isinstance(value, JointSpec):
        return f"dffg.JointSpec.of([{', '.join(_written(name, part) for part in value.inputs)}])"
    if isinstance(value, ImageSpec):
        return f"dffg.{value!r}"
    if isinstance(value, (tuple, list)):
        return repr(tuple(value))  # also of a torch.Size
    return repr(value) if isinstance(value, (int, str)) else name
