"""Long work that can be stopped: what is done so far lies beside the result until that is finished."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from dffg.errors import OutputError
from dffg.machine.device import HOST
from dffg.storage.output import staged_directory, staged_file, temporary_beside

_WORK_FILE = "work.json"
_MOST_NAMED = 5


def refuse_other_work(directory: Path, work: dict[str, str], *, anew: bool = False) -> None:
    """Raise OutputError, saying what differs, where a directory holds states of other work.

    work: everything that decides how it goes, by the names the user knows. `anew` throws the other work away.
    """
    earlier = _read_work(directory)
    differing = [name for name in {**work, **earlier} if work.get(name) != earlier.get(name)]
    if not earlier or not differing:
        return
    if not anew:
        raise OutputError(
            f"{directory} holds unfinished work that was begun otherwise: {_differences(earlier, work, differing)}. "
            "Give the same options as then to go on from it, start anew with --force, or choose another place."
        )
    discard(directory)


def _read_work(directory: Path) -> dict[str, str]:
    try:
        found = json.loads((directory / _WORK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _differences(earlier: dict[str, str], work: dict[str, str], names: list[str]) -> str:
    parts = [f"{name} was {earlier.get(name, 'not given')} and is {work.get(name, 'not given')}" for name in names]
    return "; ".join(parts[:_MOST_NAMED]) + (f"; and {len(parts) - _MOST_NAMED} more" if parts[_MOST_NAMED:] else "")


class Checkpoint:
    """Named states in a directory, of the work on one subject.

    subject: everything that decides how the work goes, see `fingerprint`. States of another subject are not found, and
    make way for new ones. work: the same for people to read, see `refuse_other_work`.
    """

    def __init__(self, directory: Path, subject: str, work: dict[str, str] | None = None) -> None:
        self._directory, self._subject, self._work = directory, subject, work or {}

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under this name; None where nothing was, or what cannot be read or is of another subject."""
        try:
            content = io.BytesIO(unsealed(self._path(name).read_bytes()))
            stored = torch.load(content, map_location=HOST, weights_only=True)
        except Exception:  # whatever a damaged file makes the reader raise
            return None
        known = isinstance(stored, dict) and stored.get("subject") == self._subject
        return stored.get("state") if known else None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Put a state of tensors, numbers and text in the place of the one before."""
        if not self._directory.exists():
            with staged_directory(self._directory) as staging:
                (staging / _WORK_FILE).write_text(json.dumps(self._work, indent=2), encoding="utf-8")
        content = io.BytesIO()
        torch.save({"subject": self._subject, "state": state}, content)
        with staged_file(self._path(name)) as staging:
            staging.write_bytes(sealed(content.getvalue()))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.pt"


def discard(directory: Path) -> None:
    """Remove all states in a directory: the work is finished, or of no use. What no `Checkpoint` has made stays."""
    if (directory / _WORK_FILE).is_file():
        with temporary_beside(directory) as going:
            os.replace(directory, going / directory.name)


def sealed(content: bytes) -> bytes:
    """With its SHA-256 in front: torch reads tensors without looking at the checksums of its files."""
    return hashlib.sha256(content).digest() + content


def unsealed(stored: bytes) -> bytes:
    """The content again. Raises ValueError where it is not what was sealed."""
    size = hashlib.sha256().digest_size
    if hashlib.sha256(stored[size:]).digest() != stored[:size]:
        raise ValueError("the content is damaged")
    return stored[size:]


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
