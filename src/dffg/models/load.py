"""Networks by name: what the command line accepts, turned into a module and a description of its input."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from dffg.errors import DffgError, InputError, first_line
from dffg.graph.captured import default_spec, program_input_shapes
from dffg.machine.device import is_out_of_memory
from dffg.models.archive import refuse_code
from dffg.models.demos import demo_network
from dffg.models.libraries import Network, timm_network, torchvision_network, transformers_network
from dffg.models.weights import load_weights
from dffg.offline import no_connections
from dffg.spec import ImageSpec

FORMS = "demo:NAME, timm:NAME, torchvision:NAME, hf:USER/NAME, package.module:factory, or a .pt2 or .onnx file"
# Names of a module that are listed where the one that was asked for is not there.
_MOST_SHOWN = 8
LIBRARIES: dict[str, Callable[[str, bool], Network]] = {
    "demo": demo_network,
    "timm": timm_network,
    "torchvision": torchvision_network,
    "hf": transformers_network,
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network ready to capture. `spec` is None where nothing says what its input looks like.

    notes: what a report must say about where it comes from.
    """

    model: nn.Module | ExportedProgram
    spec: ImageSpec | None
    name: str
    notes: tuple[str, ...] = ()


def load_model(name: str, *, weights: Path | None = None, trust: bool = False) -> Loaded:
    """Load a network from any form the command line takes; see `FORMS`.

    `weights` replaces the weights (.safetensors, or .pth opened without unpickling). `trust` allows a .pt2 archive with
    pickled content. `package.module:factory` imports and calls the user's code by design; nothing else does. With
    `DFFG_OFFLINE=1` in the environment nothing is downloaded.
    """
    if name.endswith(".pt2"):
        return _load_program(Path(name), weights, trust)
    if name.endswith(".onnx"):
        return _load_onnx(Path(name), weights)
    kind, _, rest = name.partition(":")
    if not rest:
        held = f" It may hold weights: name the network, and add --weights {name}." if _holds_weights(name) else ""
        if Path(name).is_dir():
            held = " It is a directory."
        raise InputError(f"{name!r} is not a network dffg knows; give {FORMS}.{held}")
    # What a library or the user's code prints is no answer of ours, which may be JSON.
    with no_connections(), contextlib.redirect_stdout(sys.stderr):
        model, spec = _named(kind, rest, weights is None)
    if weights is not None:
        load_weights(model, weights)
    return Loaded(model=model, spec=spec, name=name)


def _holds_weights(name: str) -> bool:
    return name.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors"))


def _named(kind: str, name: str, pretrained: bool) -> Network:
    if kind not in LIBRARIES:
        return _made(kind, name), None
    model, spec = LIBRARIES[kind](name, pretrained)
    return model.eval(), spec


def _load_program(path: Path, weights: Path | None, trust: bool) -> Loaded:
    _require_own_weights(path, weights)
    if not trust:
        refuse_code(path)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} is not a readable torch.export archive: {first_line(error)}") from error
    spec = default_spec(program_input_shapes(program))
    return Loaded(model=program, spec=spec, name=path.name)


def _load_onnx(path: Path, weights: Path | None) -> Loaded:
    from dffg.onnx_import.load import load_onnx

    _require_own_weights(path, weights)
    found = load_onnx(path)
    return Loaded(model=found.module, spec=found.spec, name=path.name, notes=found.notes)


def _require_own_weights(path: Path, weights: Path | None) -> None:
    if weights is not None:
        raise InputError(f"a {path.suffix} file holds its own weights; leave --weights out.")
    if not path.is_file():
        raise InputError(f"there is no file {path}.")


def _refuse_arguments(factory: Callable[..., Any], name: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(
            f"{name} cannot be called without arguments: {error}; name a function that takes none and returns the "
            "network."
        ) from error
    except ValueError:  # of some functions in C nothing is known
        return


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    """Within, modules are looked for in the current directory before all others, also those that a function imports."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed the path itself
            sys.path.remove(here)


def _made(module_name: str, factory_name: str) -> nn.Module:
    """What the user's own code makes."""
    with _current_directory_first():
        module = _imported(module_name)
        if not hasattr(module, factory_name):
            raise InputError(f"{module_name} ({module.__file__}) has no {factory_name!r}; it has {_public(module)}.")
        model = getattr(module, factory_name)
        if callable(model) and not isinstance(model, nn.Module):
            model = _called(model, f"{module_name}:{factory_name}")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{module_name}:{factory_name} gives {type(model).__name__}, no torch.nn.Module; return the network only."
        )
    return model


def _public(module: ModuleType) -> str:
    """What of a module may be meant: what it defines itself."""
    names = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return ", ".join(names[:_MOST_SHOWN]) or "nothing that can be called"


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SystemExit as ended:
        raise InputError(
            f"{name} ends the program (sys.exit({ended.code!r})) where it is imported; put what must not run then "
            'below if __name__ == "__main__":.'
        ) from ended
    except Exception as error:  # it is the user's code that runs here
        what = str(error) if isinstance(error, (ImportError, ValueError)) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{name or 'an empty name'} cannot be imported: {what}. Networks are given as {FORMS}."
        ) from error


def _called(factory: Callable[..., Any], name: str) -> Any:
    _refuse_arguments(factory, name)
    try:
        return factory()
    except DffgError:
        raise
    except SystemExit as ended:
        raise InputError(
            f"{name} ends the program (sys.exit({ended.code!r})) in place of returning a network."
        ) from ended
    except Exception as error:  # it is the user's code that runs here
        if is_out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise InputError(f"{name} raises {what}. Call it in Python to see where; --debug shows it, too.") from error
