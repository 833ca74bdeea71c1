"""The runtimes by the name of their target, and by the files they read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dffg.errors import InputError
from dffg.export import executorch, onnxruntime, openvino, tensorrt, torch_archive
from dffg.export.runtime import Runtime

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": onnxruntime.RUNTIME,
    "openvino": openvino.RUNTIME,
    "tensorrt": tensorrt.RUNTIME,
    "torch": torch_archive.RUNTIME,
    "executorch": executorch.RUNTIME,
}


def runtime_of(target: str) -> Runtime:
    """The runtime of a target. Raises InputError where its packages are not installed."""
    runtime = RUNTIMES[target]
    missing = [name for name in runtime.requires if find_spec(name) is None]
    if missing:
        raise InputError(f"{missing[0]} is not installed; install it with: pip install 'dffg[{target}]'")
    return runtime


def runtime_for(path: Path) -> Runtime:
    """The first runtime that reads files with this ending. Raises InputError where none does, or as `runtime_of`."""
    for target, runtime in RUNTIMES.items():
        if path.suffix == runtime.suffixes[0]:
            return runtime_of(target)
    endings = ", ".join(dict.fromkeys(runtime.suffixes[0] for runtime in RUNTIMES.values()))
    raise InputError(f"{path} is none of the files that can be run here, which end with {endings}; name one of those.")
