"""Long work that can be stopped: what is done so far lies beside the result until that is finished."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from dffg.output import staged_file


class Checkpoint:
    """Named states in a directory, of the work on one subject.

    subject: everything that decides how the work goes, see `fingerprint`. States of another subject are not found, and
    make way for new ones.
    """

    def __init__(self, directory: Path, subject: str) -> None:
        self._directory, self._subject = directory, subject

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under this name; None where nothing was, or what cannot be read or is of another subject."""
        try:
            stored = torch.load(self._path(name), weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        known = isinstance(stored, dict) and stored.get("subject") == self._subject
        return stored["state"] if known else None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Put a state of tensors, numbers and text in the place of the one before."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with staged_file(self._path(name)) as staging:
            torch.save({"subject": self._subject, "state": state}, staging)

    def remove(self) -> None:
        """The work is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.pt"


def fingerprint(*parts: Any) -> str:
    """SHA-256 over networks (graph and tensors), tensors, and whatever else by its `repr`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, fx.GraphModule):
            digest.update(str(part.graph).encode())
            for name, tensor in part.state_dict().items():
                digest.update(name.encode() + _bytes_of(tensor))
        else:
            digest.update(_bytes_of(part) if isinstance(part, Tensor) else repr(part).encode())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return str(tensor.shape).encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
