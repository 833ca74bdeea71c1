"""What the source must not do: unpickle, or run what it has read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "dffg"
FORBIDDEN = frozenset(
    {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
        "runpy",
        "code",
        "eval",
        "exec",
        "compile",
    }
)
# What may call a loader that could unpickle, and with which argument.
GUARDED = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
# torch.export.load unpickles: behind `refuse_code` for files, and what this program has sent to its own workers.
# Modules are imported by name: a factory, optional packages.
ALLOWED = {
    "torch.export.load": ["export/torch_archive.py", "graph/captured.py", "models/load.py"],
    "importlib.import_module": ["__init__.py", "machine/distributed.py", "models/libraries.py", "models/load.py"],
}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def misuses(text: str) -> list[str]:
    """Everything in a source file that could run what it reads."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.partition(".")[0] in FORBIDDEN]
    for call in calls(tree):
        name = ast.unparse(call.func)
        if name in FORBIDDEN or name.endswith(
            ("load_library", "jit.load", "hub.load", "extractall", "extract", "fromfile")
        ):
            found.append(name)
        if name in GUARDED and GUARDED[name] not in map(ast.unparse, call.keywords):
            found.append(name)
        found += [
            ast.unparse(call)
            for word in call.keywords
            if word.arg == "shell" or ast.unparse(word) == "weights_only=False"
        ]
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert misuses(path.read_text(encoding="utf-8")) == []


def test_code_is_loaded_in_these_places_only() -> None:
    for name, places in ALLOWED.items():
        found = [
            path.relative_to(SOURCE).as_posix()
            for path in sorted(SOURCE.rglob("*.py"))
            for call in calls(ast.parse(path.read_text(encoding="utf-8")))
            if ast.unparse(call.func) == name
        ]
        assert found == places, name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "torch.ops.load_library(path)",
        "subprocess.run(text, shell=True)",
        "archive.extractall(folder)",
    ],
)
def test_misuse_is_found(text: str) -> None:
    assert misuses(text)
