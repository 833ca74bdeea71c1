"""Is a `.pt2` archive only data? torch.export's loader unpickles, evaluates and loads libraries where it finds them."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dffg.errors import InputError, first_line
from dffg.spec import METADATA_KEY

# What torch.export.save writes for a network of plain tensors. Case matters: the loader finds more than it writes.
_PLAIN_MEMBERS = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|archive_format|archive_version|byteorder"
    rf"|extra/{re.escape(METADATA_KEY)}|\.data/version|\.data/serialization_id)"
)
_SYMPY_CALLS = frozenset(
    {"Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "Eq", "Ne"}
    | {"FloorDiv", "CeilDiv", "PythonMod", "CleanDiv"}
)
_ARITHMETIC_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)
_SIZE_ARITHMETIC = frozenset(
    {"_operator.getitem", "torch.sym_max", "torch.sym_min", "torch.sym_float", "torch.sym_int", "torch.sym_not"}
    | {f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "pow", "truediv")}
    | {f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
)
# Python's parser runs out of its stack, or of memory, where an expression goes on and on. torch's are a few symbols.
_LONGEST_EXPRESSION = 10_000
# Powers of powers, and shifts, are short to write and longer than any memory; sizes of tensors are squares at most.
_LARGEST_EXPONENT = 16
_SHOWN = 100


def refuse_code(path: Path) -> None:
    """Raise `InputError` unless an archive holds nothing but plain tensors and a graph.

    Members are held against a list of what is known to be harmless, so that what nobody thought of is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch reads tensors without looking at the checksums.
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} is damaged")
            reasons = list(_suspicions(archive))
    except Exception as error:  # whatever a damaged archive makes its readers raise
        raise InputError(f"{path} is not a readable torch.export archive: {first_line(error)}") from error
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
            model = json.loads(archive.read(name))
            yield from (
                f"the expression {text[:_SHOWN]!r}" for text in _entries(model, "expr_str") if not _is_arithmetic(text)
            )
            yield from (
                f"the operator {text[:_SHOWN]!r}" for text in _entries(model, "target") if not _is_computation(text)
            )


def _pickled_entries(name: str, config: Any) -> Iterator[str]:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{name} does not name tensors")
    for key, entry in entries.items():
        plain = isinstance(entry, dict) and entry.get("use_pickle") is False
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            yield f"the pickled tensor {key} in {name}"


def _entries(value: Any, name: str) -> Iterator[str]:
    """Every entry of this name in a JSON document, at any depth."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == name:
                yield str(entry)
            yield from _entries(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _entries(entry, name)


def _is_computation(target: str) -> bool:
    """torch's tensor operators, except the one that opens files, and arithmetic on sizes."""
    operator = re.fullmatch(r"torch\.ops\.aten\.(\w+)(\.\w+)?", target)
    if operator:
        return operator[1] != "from_file"
    return target in _SIZE_ARITHMETIC


def _is_arithmetic(text: str) -> bool:
    """Symbols, whole numbers, operators, and calls of sympy's arithmetic by name only.

    sympy evaluates the text as Python: it is parsed here, and everything that is not on the list is refused.
    """
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _ARITHMETIC_NODES) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    power = _power(node)
    if power is not None and not _is_small(*power):
        return False
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SYMPY_CALLS
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, (ast.LShift, ast.RShift)):
        return False
    return not isinstance(node, ast.Constant) or isinstance(node.value, int) or str(node.value).isidentifier()


def _power(node: ast.AST) -> tuple[ast.AST, ast.AST] | None:
    """Base and exponent of a power, in either of its two forms."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return node.left, node.right
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Pow" and len(node.args) == 2:
        return node.args[0], node.args[1]
    return None


def _is_small(base: ast.AST, exponent: ast.AST) -> bool:
    """Whether a power is one of a small whole number, and none of another power."""
    if isinstance(exponent, ast.Call) and getattr(exponent.func, "id", "") == "Integer" and len(exponent.args) == 1:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    number = exponent.value if isinstance(exponent, ast.Constant) else None
    return isinstance(number, int) and number <= _LARGEST_EXPONENT and not any(map(_power, ast.walk(base)))


def _is_plain_pickle(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return False
    return True
