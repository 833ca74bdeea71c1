"""Weights from a file into a network, without running anything that is in the file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dffg.errors import InputError, first_line

_PREFIX = "module."


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a state dictionary from a file into a network, all of it and nothing else.

    Wrappers that training scripts leave are removed: an outer `state_dict` or `model` entry, a `module.` prefix of
    every name.
    """
    own = model.state_dict()
    state = _unwrapped(_read_state(path), own)
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [
        *_name_keys("missing in the file", sorted(own.keys() - state.keys() - optional)),
        *_name_keys("unknown to the network", sorted(state.keys() - own.keys())),
        *_name_keys("of another shape", [key for key in own if key in state and own[key].shape != state[key].shape]),
    ]
    if problems:
        raise InputError(f"the weights in {path} do not fit the network: {'; '.join(problems)}.")
    model.load_state_dict(state, strict=False)


def _name_keys(what: str, keys: list[str]) -> list[str]:
    return [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"] if keys else []


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"there is no weights file at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            _check_sums(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as weights: {first_line(error)}\nGive .safetensors, or a .pth file "
            "that holds only tensors (torch.save(model.state_dict(), ...))."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a state dictionary of tensors.")
    return dict(state)


def _unwrapped(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that `nn.DataParallel` puts before every name; a part of the network may have that name."""
    if own.keys() & state.keys() or not all(key.startswith(_PREFIX) for key in state):
        return state
    return {key.removeprefix(_PREFIX): value for key, value in state.items()}


def _check_sums(path: Path) -> None:
    """torch reads tensors without looking at the checksums that it wrote. Files of its old format have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")
