"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dffg.cli.recipe_file import recipe_option, with_place
from dffg.config import AUTO, parse_bytes
from dffg.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def config_options(config: type) -> Callable[[Command], Command]:
    """Add one option per field of a configuration; the command is given the made configuration under its type."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            made = make(config, values)
            names = {field.name for field in dataclasses.fields(config)}
            rest = {name: value for name, value in values.items() if name not in names}
            return command(**rest, **{config.__name__: made})

        for field in reversed(dataclasses.fields(config)):
            wrapper = _option(field)(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def make(config: type, values: dict[str, Any]) -> Any:
    """A configuration from options; what was not given keeps its default."""
    names = [field.name for field in dataclasses.fields(config)]
    try:
        return config(**{name: values[name] for name in names if values[name] is not None})
    except InputError as error:
        raise with_place(error, _as_typed(config, str(error))) from None


def _as_typed(config: type, text: str) -> str:
    """A message about a field, with the name that the command line has for it."""
    for field in dataclasses.fields(config):
        if text.startswith(f"{field.name} is "):
            return _flags(field)[0] + text.removeprefix(field.name)
    return text


def _option(field: dataclasses.Field[Any]) -> Callable[[Any], Any]:
    if field.name == "recipe":
        return recipe_option(field.metadata["choices"], f"Options from a YAML file. {field.metadata['help']}")
    return click.option(*_flags(field), **_settings(field))


def _flags(field: dataclasses.Field[Any]) -> tuple[str, str]:
    return f"--{(field.metadata['flag'] or field.name).replace('_', '-')}", field.name


def _settings(field: dataclasses.Field[Any]) -> dict[str, Any]:
    choices = field.metadata["choices"]
    kind = click.Choice(choices) if choices else _TYPES[str(field.type).partition(" ")[0]]
    shown = field.default is not None
    default = f"  [default: {field.default}]" if shown else ""
    return {"type": kind, "default": None, "help": field.metadata["help"] + default}


def _together(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Several options as one, in the order in which --help lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# What an input looks like.
input_options = _together(
    click.option("--input", "input_shape", help="Shape of one input, like 3x224x224; of several, 3x224x224/8."),
    click.option("--mean", help="Per-channel mean, like 0.485,0.456,0.406."),
    click.option("--std", help="Per-channel standard deviation, like 0.229,0.224,0.225."),
    click.option("--bounds", help="Lowest and highest pixel or feature value, like 0:1 or -130:30."),
)

# The network and what its input looks like.
model_options = _together(
    click.argument("model"),
    click.option("--weights", type=click.Path(path_type=Path), help="Weights: .safetensors, or .pth of tensors."),
    input_options,
    click.option("--trust", is_flag=True, help="Allow a .pt2 file with pickled content, which can run code."),
)

memory_option = click.option(
    "--memory-limit",
    callback=lambda context, parameter, value: None if value is None else parse_bytes(value),
    help="Most memory for a step of synthesis, like 2GB; batches are halved to fit  [default: what is available]",
)

device_option = click.option(
    "--device",
    default=AUTO,
    show_default=True,
    help="What makes images and learns: cpu, cuda, or one of several like cuda:1; auto is cuda where there is one.",
)


def _address(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """Of what follows --ray, which may be the argument that was meant for another place."""
    if text is not None and not re.fullmatch(r"local|auto|.+:\d+", text):
        raise InputError(
            f"--ray is followed by {text!r}, which is no address of a Ray cluster; give --ray at the end for all "
            "processors of this machine, or --ray=auto or --ray=HOST:PORT for a cluster."
        )
    return text


def _needs_ray(context: click.Context, _: click.Parameter, workers: int | None) -> int | None:
    if workers is not None and context.params["ray"] is None:
        raise InputError("--workers is given without --ray; give both, or neither.")
    return workers


# Where tasks run.
worker_options = _together(
    click.option(
        "--ray",
        is_flag=False,
        is_eager=True,
        callback=_address,
        flag_value="local",
        metavar="[ADDRESS]",
        help="Run on all processors of this machine, or of the Ray cluster at ADDRESS (auto, or HOST:PORT).",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        callback=_needs_ray,
        help="With --ray: tasks at once  [default: all processors]",
    ),
)

# How much is printed, and how errors are shown.
output_options = _together(
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table."),
    # `main` reads it.
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)
