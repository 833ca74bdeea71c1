"""`dffg recipe`."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import click

from dffg.cli.options import make
from dffg.cli.quantize import quantize
from dffg.cli.recipe_file import dump, recipe_parameters
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig


@click.group()
def recipe() -> None:
    """Options of a command in a YAML file, for --recipe."""


def _optional(parameter: click.Parameter) -> click.Parameter:
    changed = copy.copy(parameter)
    changed.required = False
    return changed


@recipe.command(params=[_optional(parameter) for parameter in quantize.params])
def show(**values: Any) -> None:
    """Print a recipe: all options of quantize with the values they have beside those given here."""
    quantization = make(QuantizationConfig, values)
    learning = make(LearningConfig, values).completed(quantization)
    for config in (quantization, learning, make(SynthesisConfig, values)):
        values.update(dataclasses.asdict(config))
    if values["memory_limit"] is not None:
        values["memory_limit"] = f"{values['memory_limit']}B"  # a size is read with its unit
    click.echo(dump({key: values[str(found.name)] for key, found in recipe_parameters(quantize)}), nl=False)
