"""The network that is named on the command line, its input, and data for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dffg.cli.terminal import say
from dffg.errors import InputError

if TYPE_CHECKING:
    from dffg.evaluation.data import Data
    from dffg.graph.captured import Captured
    from dffg.models.load import Loaded
    from dffg.spec import ImageSpec


def load(
    options: dict[str, Any], quiet: bool, known: ImageSpec | None = None
) -> tuple[Loaded, ImageSpec, tuple[str, ...]]:
    """The network with its input as described, and notes for the report.

    known: what an earlier result says of the input, in place of the network's source.
    """
    from dffg.models.load import load_model

    loaded = load_model(options["model"], weights=options["weights"], trust=options["trust"])
    known = known or loaded.spec
    spec = describe_input(known, options)
    assumed = assumption(known, options)
    say(assumed, quiet)
    say(_doubt(spec), quiet)
    return loaded, spec, (assumed or f"input normalization from {spec.source}", *loaded.notes)


def assumption(known: ImageSpec | None, options: dict[str, Any]) -> str | None:
    """What is taken for granted of an input where neither its source nor the user says how it is normalized."""
    from dffg.spec import DEFAULT_INPUT

    if (known is not None and known.source != "default") or options["mean"] or options["std"] or options["bounds"]:
        return None
    return f"no --mean, --std or --bounds were given: assuming {DEFAULT_INPUT}"


def _doubt(spec: ImageSpec) -> str | None:
    """That a mean lies beyond all pixels, as where it is told for those from 0 to 255."""
    beyond = next((part for part in spec.parts if part.is_pixels and max(part.mean) > part.bounds[1]), None)
    if beyond is None:
        return None
    low, high = beyond.bounds
    return (
        f"--mean {max(beyond.mean):g} lies beyond the bounds {low:g}:{high:g} of the pixels; where it is for pixels "
        "from 0 to 255, divide --mean and --std by 255"
    )


def describe_input(known: ImageSpec | None, options: dict[str, Any]) -> ImageSpec:
    """What the network's source says, with what the user says on top; several inputs are separated by slashes."""
    from dffg.spec import JointSpec

    names = ("input_shape", "mean", "std", "bounds")
    given = {name: str(options[name]).split("/") for name in names if options.get(name)}
    if known is None and not all(given.get("input_shape", [""])):
        raise InputError("the shape of the input is unknown; give it with --input, like --input 3x224x224.")
    inputs = list(known.inputs) if isinstance(known, JointSpec) else [known] * len(given.get("input_shape", [known]))
    for name, values in given.items():
        if len(values) not in (1, len(inputs)) or (name == "input_shape" and len(values) != len(inputs)):
            raise InputError(
                f"--{name.removesuffix('_shape')} {options[name]} describes {len(values)} inputs, and there are "
                f"{len(inputs)}; give one value for every input, separated by slashes."
            )
    specs = []
    for index, part in enumerate(inputs):
        own = {name: values[index % len(values)] for name, values in given.items()}
        try:
            specs.append(_describe_one_input(part, own))
        except InputError as error:
            if len(inputs) == 1:
                raise
            of_several = f"input {index + 1} of {len(inputs)}, whose options are separated by slashes"
            raise InputError(f"{of_several}: {error}") from None
    return specs[0] if len(specs) == 1 else JointSpec.of(specs)


def _describe_one_input(known: ImageSpec | None, options: dict[str, Any]) -> ImageSpec:
    from dffg.spec import ImageSpec, parse_bounds, parse_numbers, parse_shape

    changes: dict[str, Any] = {}
    for name, parse in (("mean", parse_numbers), ("std", parse_numbers), ("bounds", parse_bounds)):
        if options.get(name):
            changes[name] = parse(options[name])
    if options.get("input_shape"):
        changes["shape"] = parse_shape(options["input_shape"])
    if changes.keys() - {"shape"}:
        changes["source"] = "the command line"
    if known is None:
        return ImageSpec(**{"source": "default", **changes})
    return dataclasses.replace(known, **changes)


def data_at(path: Path | None, spec: ImageSpec, *, labelled: bool) -> Data | None:
    """Real data of a path, where one is given."""
    if path is None:
        return None
    from dffg.evaluation.data import load_data

    return load_data(path, spec, labelled=labelled)


def captured_from(loaded: Loaded, spec: ImageSpec, view: Any) -> Captured:
    """The network as a graph."""
    from dffg.graph.captured import capture

    view.stage("capture")
    return capture(loaded.model, spec=spec, name=loaded.name)
