"""Networks of other libraries by their names: timm, torchvision, Hugging Face's transformers. Each states its input."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dffg.errors import InputError, first_line
from dffg.offline import VARIABLE, is_offline
from dffg.spec import Array, ImageSpec, Pixels

Network = tuple[nn.Module, ImageSpec | None]
_PROBE_SIDE = 1024
_COLORS = (10, 100, 230)
_DIGITS = 6
_ALIKE = 1e-3
_MORE = (
    "its processor does more with pictures than to scale and crop them, take off a mean and divide by a deviation; "
    "give the network as package.module:factory, with --input, --mean and --std."
)


def timm_network(name: str, pretrained: bool) -> Network:
    """A network of timm, also from a hub or a folder, with the input that timm states for it."""
    timm = require("timm")
    # Names on a hub are not in timm's list; its own loader knows what to do with them.
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        check_name(name.partition(".")[0], timm.list_models(), "timm")
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        raise InputError(_download_message(f"timm:{name}", error)) from error
    return model, timm_spec(timm, model)


def timm_spec(timm: Any, model: nn.Module) -> ImageSpec:
    """What timm states of a network's input."""
    config = timm.data.resolve_model_data_config(model)
    return ImageSpec(
        shape=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_fraction=float(config["crop_pct"]),
        source="timm's configuration of the network",
    )


def torchvision_network(name: str, pretrained: bool) -> Network:
    """A network of torchvision, with the input that its newest weights were trained for."""
    torchvision = require("torchvision")
    check_name(name, torchvision.models.list_models(), "torchvision")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        model = torchvision.models.get_model(name, weights=weights if pretrained else None)
    except Exception as error:
        raise InputError(_download_message(f"torchvision:{name}", error)) from error
    transform = weights.transforms()
    mean, std, crop, resize = (getattr(transform, key, None) for key in ("mean", "std", "crop_size", "resize_size"))
    if not (mean and std and crop and resize):
        return model, None
    spec = ImageSpec(
        shape=(3, crop[0], crop[0]),
        mean=tuple(mean),
        std=tuple(std),
        crop_fraction=crop[0] / resize[0],
        source="torchvision's transforms of the weights",
    )
    return model, spec


def _download_message(name: str, error: Exception) -> str:
    return (
        f"the weights of {name} cannot be loaded: {first_line(error)}\n{_offline_hint()}: fetch them elsewhere and "
        "give the file with --weights."
    )


def transformers_network(name: str, pretrained: bool) -> Network:
    """An image classifier of Hugging Face's transformers, from a hub or a folder, with the input of its processor.

    Only safetensors are read, and no code that lies beside them is run.
    """
    transformers = require("transformers", "hf")
    if not pretrained:
        raise InputError(f"hf:{name} holds its own weights; leave --weights out, or give the folder that holds them.")
    transformers.utils.logging.disable_progress_bar()
    try:
        safe = {"trust_remote_code": False, "local_files_only": is_offline()}
        processor = transformers.AutoImageProcessor.from_pretrained(name, **safe)
        model = transformers.AutoModelForImageClassification.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, **safe
        )
    except Exception as error:
        raise InputError(
            f"hf:{name} cannot be loaded: {first_line(error)}\nIt must be a repository, or a folder, with an image "
            "classifier of transformers: config.json, model.safetensors and preprocessor_config.json. "
            f"{_offline_hint()}: fetch them elsewhere and give hf:FOLDER."
        ) from error
    return _Scores(model), _probed(lambda picture: processor(picture, return_tensors="np")["pixel_values"][0])


class _Scores(nn.Module):
    """The scores of a classifier of transformers, in place of the record that holds them."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        scores: Tensor = self.classifier(pixel_values=pixel_values).logits
        return scores


def _probed(process: Callable[[Pixels], Array]) -> ImageSpec:
    """What a processor does with pictures, by asking it: processors are many, and each has fields of its own.

    process: a picture (H, W, 3) of 0 to 255 to a network input (3, H, W). Black and white tell mean and deviation, a
    white band as wide as half the picture how much is cut away around it. Raises InputError where it does more.
    """
    side = _PROBE_SIDE
    pictures = np.zeros((3, side, side, 3), dtype=np.uint8)
    pictures[1], pictures[2, :, side // 4 : -side // 4] = 255, 255
    black, white, banded = map(process, pictures)
    low, high = (flat[:, 0, 0].astype(np.float64) for flat in (black, white))
    if any(np.ptp(flat, axis=(1, 2)).max() > _ALIKE for flat in (black, white)) or not (high > low).all():
        raise InputError(_MORE)
    std = 1 / (high - low)
    cut_out, width = 0.5 / ((banded - black) / (white - black)).mean(), black.shape[2]
    spec = ImageSpec(
        shape=black.shape,
        mean=tuple(np.round(-low * std, _DIGITS).tolist()),
        std=tuple(np.round(std, _DIGITS).tolist()),
        crop_fraction=width / round(width / cut_out),
        source="the processor of the network, by transformers",
    )
    colors = np.tile(np.array(_COLORS, dtype=np.uint8), (side, side, 1))
    expected = spec.from_uint8(np.array(_COLORS, dtype=np.uint8)[None, :, None, None])[0]
    if not np.allclose(process(colors), expected, atol=_ALIKE):
        raise InputError(_MORE)
    return spec


def _offline_hint() -> str:
    return f"{VARIABLE} is set, so nothing is downloaded" if is_offline() else "If this machine is offline"


def require(package: str, extra: str = "timm") -> Any:
    """An optional package, or the words that say how to install it."""
    source = f"'dffg[{extra}]'"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise InputError(
                f"{package} cannot be imported: {error}; install it anew: pip install -U {source}"
            ) from error
        raise InputError(f"{package} is not installed; install it with: pip install {source}") from error
    except Exception as error:  # torchvision beside another torch raises what it likes
        raise InputError(
            f"{package} cannot be imported: {first_line(error)}. It may not fit this torch; install it anew: "
            f"pip install -U {source}"
        ) from error


def check_name(name: str, known: Iterable[str], source: str) -> None:
    """Refuse a name that a library does not know, and suggest near ones."""
    known = list(known)
    if name not in known:
        matches = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"; did you mean {', '.join(matches)}?" if matches else "."
        raise InputError(f"{source} has no network {name!r}{hint}")
