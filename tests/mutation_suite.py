"""Change the arithmetic, one operator or number at a time, and see the tests fail: python -m tests.mutation_suite.

cosmic-ray makes the changes. They are tried in a copy of the project, each in a process forked from this one, where
torch and everything else that the tests import of other packages is loaded once; the tests of a module take a second or
a few. What survives is printed, to be read: some changes, like that of a constant that
only guards a division, change nothing that one could see.

Of the changes of an operator only those into its relatives are tried (+ and -, < and <= and >=), since all others are
found by the same tests. Annotations are left as they are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODULES = (
    *(f"synthesis/{name}" for name in ("update", "statistics", "variability", "objective", "patches", "probe")),
    *("graph/fold", "graph/padding", "graph/patches"),
    *(f"quant/{path.stem}" for path in sorted((ROOT / "src/dffg/quant").glob("[a-z]*.py"))),
    *("export/packing", "evaluation/metrics"),
)
# The tests of a module are those of its name. These have others, or are watched by more.
TESTS = {
    "graph/patches": ("synthesis/test_patches",),
    "synthesis/probe": ("synthesis/test_objective", "graph/test_padding"),
    "quant/calibrate": ("quant/test_calibrate", "quant/test_decide", "quant/test_sensitivity"),
    "quant/finetune": ("quant/test_reconstruct", "storage/test_checkpoint"),
    "quant/learned_network": ("quant/test_learned",),
    "quant/operators": ("quant/test_operators", "quant/test_placement", "quant/test_decide"),
    "quant/parameters": ("quant/test_bias", "quant/test_decide"),
    "quant/reconstruct": ("quant/test_reconstruct", "storage/test_checkpoint"),
    "quant/rounding": ("quant/test_squant", "quant/test_decide", "quant/test_bias"),
    "quant/placement": ("quant/test_placement", "test_targets", "export/test_onnx"),
    "quant/quantized": ("quant/test_quantized", "quant/test_decide", "quant/test_placement"),
}
_RELATIVES = (
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "FloorDiv_Div", "Pow_Mul", "Mod_Mul"),
    *("BitAnd_BitOr", "BitOr_BitAnd", "LShift_RShift", "RShift_LShift"),
    *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
    *("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "GtE_Lt", "Gt_LtE", "LtE_Gt"),
)
_OPTIONS = ("-q", "-x", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_IMPORTED = Path("imported.txt")
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    change: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.change}: {self.code.splitlines()[self.line - 1].strip()}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of a module, in the order of operators."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    tree = ast.parse(source)
    annotations = [_extent(node) for node in _annotations(tree)]
    for name in operator_names():
        kind = name.removeprefix("core/")
        if get_operator(name).arguments() or not _is_near(kind):
            continue
        operator = get_operator(name)()
        places = [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(places):
            code = mutate_code(source, operator, occurrence)
            if _means_something(kind, code, tree) and not any(first <= start < last for first, last in annotations):
                yield Mutant(kind, start[0], code)


def _means_something(kind: str, code: str, tree: ast.AST) -> bool:
    """Whether a change can be compiled, and is not that of the star among parameters, which is no product."""
    try:
        changed = ast.parse(code)
    except SyntaxError:
        return False
    return "BinaryOperator" not in kind or _kinds(changed) != _kinds(tree)


def _kinds(tree: ast.AST) -> Counter[type]:
    return Counter(type(node) for node in ast.walk(tree))


def _is_near(kind: str) -> bool:
    if kind.startswith(("ReplaceBinaryOperator", "ReplaceComparisonOperator")):
        return kind.partition("_")[2] in _RELATIVES
    return "Invert" not in kind and kind != "ExceptionReplacer"


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        for found in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if found is not None:
                yield found


def _extent(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def tests_of(module: str) -> list[str]:
    """Files of tests that are about a module."""
    folder, _, name = module.rpartition("/")
    return [f"tests/{name}.py" for name in TESTS.get(module, (f"{folder}/test_{name}".removeprefix("/"),))]


def _test(files: list[str]) -> None:
    """In a process of its own: run tests, write what was imported of others, and end with pytest's code."""
    import pytest

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    code = pytest.main([*_OPTIONS, *files])
    others = [name for name in sys.modules if name.partition(".")[0] not in ("dffg", "tests", "benchmarks")]
    _IMPORTED.write_text("\n".join(others), encoding="utf-8")
    os._exit(int(code))


def _ends(files: list[str], seconds: float) -> int | None:
    """The code that tests end with; None where they do not end in time."""
    process = _fork.Process(target=_test, args=(files,))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def prepare(files: list[str]) -> float:
    """See the tests pass on what is unchanged, and import what they import of others; how long they take after."""
    import torch

    _see_pass(files)
    for name in _IMPORTED.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # The first export takes ten times as long as any later one.
    torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    started = time.monotonic()
    _see_pass(files)
    return time.monotonic() - started


def _see_pass(files: list[str]) -> None:
    if _ends(files, 3600) != 0:
        raise SystemExit(f"the tests fail without a change: {files}")


def survivors(path: Path, chosen: list[Mutant], files: list[str]) -> Iterator[Mutant]:
    """Changes that the tests have not noticed. One that lets them run for ever is noticed."""
    seconds = 20 + 10 * prepare(files)
    source = path.read_text(encoding="utf-8")
    # Python tells changes of a file by its size and second: what is compiled by now is used, and nothing new is kept.
    Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
    sys.dont_write_bytecode = True
    try:
        for mutant in chosen:
            path.write_text(mutant.code, encoding="utf-8")
            if _ends(files, seconds) == 0:
                yield mutant
    finally:
        path.write_text(source, encoding="utf-8")
        sys.dont_write_bytecode = False


def enter_copy(place: Path) -> None:
    """Go on in a copy of the project, imported from there by whatever is started."""
    for name in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "pyproject.toml", place)
    os.chdir(place)
    sys.path[:0] = [f"{place}/src", str(place)]
    del sys.modules["tests"]
    os.environ.update(PYTHONPATH=f"{place}/src:{place}", OMP_NUM_THREADS="1")
    sys.dont_write_bytecode = False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--sample", type=int, help="Changes of every module, drawn at random; default: all.")
    arguments = parser.parse_args()
    killed = tried = 0
    with tempfile.TemporaryDirectory(prefix="dffg-mutants-") as folder:
        enter_copy(Path(folder))
        for module in arguments.modules:
            started, path = time.monotonic(), Path(folder, "src/dffg", f"{module}.py")
            found = list(mutants(path.read_text(encoding="utf-8")))
            chosen = random.Random(module).sample(found, min(len(found), arguments.sample or len(found)))
            left = list(survivors(path, chosen, tests_of(module)))
            killed, tried = killed + len(chosen) - len(left), tried + len(chosen)
            seconds = time.monotonic() - started
            print(f"{module}: {len(chosen) - len(left)} of {len(chosen)} killed, of {len(found)} ({seconds:.0f} s)")
            print(*(f"    {mutant}" for mutant in sorted(left, key=lambda one: one.line)), sep="\n", flush=True)
    print(f"all: {killed} of {tried} killed ({killed / max(1, tried):.1%})")


if __name__ == "__main__":
    main()
