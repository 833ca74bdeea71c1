"""Is a `.pt2` archive only data? torch.export's loader unpickles, evaluates and loads libraries where it finds them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dffg.errors import InputError

# What torch.export.save writes for a network of plain tensors. Case matters: the loader finds more than it writes.
_PLAIN_MEMBERS = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|archive_format|archive_version|byteorder"
    r"|\.data/version|\.data/serialization_id)"
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_SYMPY_CALLS = frozenset(
    {"Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "Eq", "Ne"}
    | {"FloorDiv", "CeilDiv", "PythonMod", "CleanDiv"}
)


def refuse_code(path: Path) -> None:
    """Raise `InputError` unless an archive holds nothing but plain tensors and a graph.

    Members are held against a list of what is known to be harmless, so that what nobody thought of is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reasons = list(_suspicions(archive))
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable torch.export archive: {error}") from error
    if reasons:
        raise InputError(
            f"{path} holds {reasons[0]}, which can run code when it is loaded. If you trust where the file comes from, "
            "add --trust."
        )


def _suspicions(archive: zipfile.ZipFile) -> Iterator[str]:
    if not any(name.endswith((".json", ".pt")) for name in archive.namelist()):
        raise ValueError("it holds no program")
    for name in archive.namelist():
        if not _PLAIN_MEMBERS.fullmatch(name):
            yield f"the unusual member {name}"
        elif name.endswith(".pt") and not _is_plain_pickle(archive.read(name)):
            yield f"pickled objects in {name}"
        elif name.endswith("_config.json"):
            yield from _pickled_entries(name, json.loads(archive.read(name)))
        elif name.endswith(".json"):
            expressions = _expressions(json.loads(archive.read(name)))
            yield from (f"the expression {text!r}" for text in expressions if not _is_arithmetic(text))


def _pickled_entries(name: str, config: Any) -> Iterator[str]:
    entries = config.get("config", {}) if isinstance(config, dict) else {}
    for key, entry in entries.items():
        plain = isinstance(entry, dict) and entry.get("use_pickle") is False
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            yield f"the pickled tensor {key} in {name}"


def _expressions(value: Any) -> Iterator[str]:
    """Every text that the loader would hand to sympy, which evaluates it as Python."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "expr_str":
                yield str(entry)
            else:
                yield from _expressions(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _expressions(entry)


def _is_arithmetic(text: str) -> bool:
    """Symbols, whole numbers, operators, and calls of sympy's arithmetic only."""
    text = _SYMBOL.sub("symbol", text)
    if "__" in text or not re.fullmatch(r"[\w\s+\-*/%(),<>=&|~]*", text):
        return False
    return set(re.findall(r"(\w+)\s*\(", text)) <= _SYMPY_CALLS


def _is_plain_pickle(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return False
    return True
