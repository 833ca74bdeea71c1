"""Names that may stand in Python code: torch compiles graphs from text that has names of tensors and inputs in it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature


def without_keyword(name: str, suffix: str = "_") -> str:
    """`class` as `class_`, and other names as they are."""
    return name + suffix if iskeyword(name) else name


def argument_names(names: Sequence[str]) -> list[str]:
    """Names of a function's arguments, all different, that are these or close to them."""
    found: list[str] = []
    for name in names:
        usable = without_keyword(re.sub(r"\W", "_", name))
        usable = usable if usable.isidentifier() else f"_{usable}"
        while usable in found:
            usable += "_"
        found.append(usable)
    return found


def with_usable_paths(program: ExportedProgram) -> ExportedProgram:
    """A program with no keyword in the paths of its tensors, as `nn.ModuleDict({"class": ...})` has; itself mostly."""
    renamed = _renamed([*program.state_dict, *program.constants])
    if not renamed:
        return program

    def with_targets(specs: Sequence[Any]) -> list[Any]:
        return [dataclasses.replace(spec, target=renamed.get(spec.target, spec.target)) for spec in specs]

    signature = program.graph_signature
    return ExportedProgram(
        program.graph_module,
        copy.deepcopy(program.graph),
        ExportGraphSignature(with_targets(signature.input_specs), with_targets(signature.output_specs)),
        {renamed.get(path, path): tensor for path, tensor in program.state_dict.items()},
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        {renamed.get(path, path): value for path, value in program.constants.items()},
        verifiers=program.verifiers,
    )


def _renamed(paths: Sequence[str]) -> dict[str, str]:
    """Paths that have a keyword, as they may be called; the suffix makes no name that another part has."""
    pieces = {piece for path in paths for piece in path.split(".")}
    suffix = "_"
    while any(without_keyword(piece, suffix) in pieces for piece in filter(iskeyword, pieces)):
        suffix += "_"
    new = (".".join(without_keyword(piece, suffix) for piece in path.split(".")) for path in paths)
    return {path: name for path, name in zip(paths, new, strict=True) if name != path}
