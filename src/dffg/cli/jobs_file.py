"""Many networks by many schemes: what `dffg batch` is to do, read from a YAML file of recipes.

    options:  {images: 64}                             # of all jobs
    models:   [demo:mobilenet_v2, {model: net.pt2, mean: 0.5, std: 0.25}]
    schemes:  [W8A8, {bits: W4A4, first-last-bits: 8}] # every model by every scheme
    jobs:     [{model: net.onnx, target: openvino}]    # and single ones

An entry is a recipe (`recipe_file.py`), or, in short, the name of a network or the bits of a scheme. `name`, which any
entry may have, names the directory of a result. Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dffg.cli.recipe_file import compose, entries, pairs, place_of, read_pairs
from dffg.errors import InputError

if TYPE_CHECKING:
    from yaml import Node

_SECTIONS = ("options", "models", "schemes", "jobs")
# Given by the batch: where a result goes.
_NOT_HERE = ("out",)
_NAME = re.compile(r"\w[\w.+-]{0,199}")
_MOST_JOBS = 10_000
_FILES = (".pt2", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One result. name: its directory; values: options by parameter, as text; place: the line where it stands."""

    name: str
    values: Mapping[str, str]
    place: str

    def arguments(self, known: Mapping[str, click.Parameter]) -> list[str]:
        """What the command line says for it."""
        flags = {str(parameter.name): max(parameter.opts, key=len) for parameter in known.values()}
        rest = [part for name, text in self.values.items() if name != "model" for part in (flags[name], text)]
        return [self.values["model"], *rest]


def read_jobs(path: Path, known: Mapping[str, click.Parameter]) -> list[Job]:
    """All jobs of a file. known: what a recipe can say, by key.

    Raises `InputError` with the line for what no recipe can say, for two jobs of one name, for one without a model, for
    schemes without models, and where there are none or too many.
    """
    sections = _sections(path)
    options = _entry(path, sections["options"], known).values if "options" in sections else {}
    models, schemes, single = (
        [_entry(path, node, known, short) for node in entries(path, sections[name])] if name in sections else []
        for name, short in (("models", "model"), ("schemes", "bits"), ("jobs", "model"))
    )
    if schemes and not models:
        raise InputError(
            f"{place_of(path, sections['schemes'])}: schemes go with models, and there are none here; give models:, or "
            "every job of jobs: its own bits."
        )
    if len(models) * max(1, len(schemes)) + len(single) > _MOST_JOBS:
        raise InputError(f"{path} has more than {_MOST_JOBS} jobs; split it.")
    jobs = [_joined(options, model, scheme) for model in models for scheme in schemes]
    jobs += [_joined(options, entry) for entry in (*(() if schemes else models), *single)]
    if not jobs:
        raise InputError(f"{path} has no jobs; give models: (by schemes:), or jobs:.")
    seen: dict[str, str] = {}
    for job in jobs:
        if job.name in seen:
            raise InputError(
                f"{job.place}: a job at {seen[job.name]} is named {job.name}, too; give one a name: of its own."
            )
        seen[job.name] = job.place
    return jobs


def _sections(path: Path) -> dict[str, Node]:
    root = compose(path)
    found: dict[str, Node] = {}
    for key, node in [] if root is None else pairs(path, root):
        if key.value not in _SECTIONS:
            raise InputError(
                f"{place_of(path, key)}: there is no {key.value!r} here; it can have {', '.join(_SECTIONS)}."
            )
        if key.value in found:
            raise InputError(f"{place_of(path, key)}: {key.value} stands here a second time; keep one.")
        found[key.value] = node
    return found


def _entry(path: Path, node: Node, known: Mapping[str, click.Parameter], short: str = "") -> Job:
    """A recipe, or the one value that it may be short for."""
    import yaml

    is_short = short and isinstance(node, yaml.ScalarNode)
    content = [(yaml.ScalarNode("", short, node.start_mark), node)] if is_short else pairs(path, node)
    name, rest = "", []
    for key, value in content:
        if key.value in _NOT_HERE:
            raise InputError(f"{place_of(path, key)}: {key.value} is set by dffg batch; leave it out.")
        if key.value != "name":
            rest.append((key, value))
        elif not short:
            raise InputError(f"{place_of(path, key)}: only an entry of models, schemes or jobs has a name.")
        elif not isinstance(value, yaml.ScalarNode) or not _NAME.fullmatch(value.value):
            raise InputError(f"{place_of(path, key)}: name is not one word of letters, digits, dots and dashes.")
        else:
            name = value.value
    values = {name: text for name, (text, _) in read_pairs(path, rest, known).items()}
    return Job(name=name, values=_relative_to(path, values, known), place=place_of(path, node))


def _relative_to(path: Path, values: dict[str, str], known: Mapping[str, click.Parameter]) -> dict[str, str]:
    """Files beside the file, by their full paths."""
    files = {str(parameter.name) for parameter in known.values() if isinstance(parameter.type, click.Path)}

    def resolved(name: str, text: str) -> str:
        is_file = name in files or (name == "model" and text.endswith(_FILES))
        return str(path.parent.resolve() / text) if is_file else text

    return {name: resolved(name, text) for name, text in values.items()}


def _joined(options: Mapping[str, str], entry: Job, scheme: Job | None = None) -> Job:
    values = {**options, **entry.values, **(scheme.values if scheme else {})}
    if "model" not in values:
        raise InputError(f"{entry.place}: this has no model; give one.")
    names = [entry.name or _named(values["model"])]
    if scheme is not None:
        names.append(scheme.name or _named(values.get("bits", "W8A8")))
    elif not entry.name and "bits" in values:
        names.append(_named(values["bits"]))
    return Job(name="-".join(names), values=values, place=entry.place)


def _named(text: str) -> str:
    last = Path(text.rpartition(":")[2]).name
    return re.sub(r"[^\w.+-]+|^[^\w]+", "_", last) or "_"
