"""Run `dffg` and Python programs as processes of their own, forked from one that has imported what most of them need.

Imports and the first file take 7 seconds of processor time, the work of most commands one. What a command is typed as
is what it gets: its arguments, its folder and an interpreter's `__main__`. Any other command is started as it is.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import types
from contextlib import suppress
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["timm", "torchvision", "tests.forked"])
_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(command: list[str], folder: Path) -> str:
    """What a command prints, run in a folder; it must succeed."""
    name, *arguments = command
    if name == "dffg":
        return _forked(["dffg", *arguments], folder)
    if name == sys.executable:
        return _forked(arguments, folder)
    environment = {**os.environ, "PATH": _PATH}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def _forked(arguments: list[str], folder: Path) -> str:
    with tempfile.TemporaryDirectory() as streams:
        printed, said = Path(streams, "stdout"), Path(streams, "stderr")
        process = _FORKS.Process(target=_be, args=(arguments, folder, printed, said))
        process.start()
        process.join()
        assert process.exitcode == 0, said.read_text(encoding="utf-8")
        return printed.read_text(encoding="utf-8")


def _be(arguments: list[str], folder: Path, printed: Path, said: Path) -> None:
    """In the forked process: `dffg ...`, `python -c program ...` or `python file ...`."""
    for stream, path in ((1, printed), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ["PATH"] = _PATH
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        if arguments[0] == "dffg":
            _run_dffg(arguments)
        elif arguments[0] == "-c":
            _run_program(main, "<string>", arguments[1], ["-c", *arguments[2:]], "")
        else:
            path = Path(arguments[0])
            _run_program(main, str(path), path.read_text(encoding="utf-8"), arguments, str(path.parent))
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()


def _run_dffg(arguments: list[str]) -> None:
    from dffg.cli.main import main

    sys.argv = arguments
    sys.path[0] = _PATH.partition(os.pathsep)[0]
    main()


def _run_program(main: types.ModuleType, name: str, program: str, arguments: list[str], beside: str) -> None:
    sys.argv = arguments
    sys.path.insert(0, beside)
    main.__file__ = name
    exec(compile(program, name, "exec"), main.__dict__)
