"""`DFFG_OFFLINE=1`: nothing is downloaded, whichever library would do it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

VARIABLE = "DFFG_OFFLINE"
_CONNECTING = ("socket.getaddrinfo", "socket.connect")
_guarded = ContextVar("guarded", default=False)


def is_offline() -> bool:
    """Whether the user forbade downloads."""
    return os.environ.get(VARIABLE, "").lower() not in ("", "0", "false", "no")


@contextmanager
def no_connections() -> Iterator[None]:
    """Where the user forbade downloads, whatever asks for an address or connects meets a ConnectionError.

    Python tells of both before they happen, whoever does it, so that no library has to be known here. It is the error
    of a machine without a network: libraries that have the file in a cache then take it from there. Hugging Face's
    would try for 20 s; it has a variable of its own, which it reads when it is imported.
    """
    _listen()
    token = _guarded.set(is_offline())
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        _guarded.reset(token)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTING and _guarded.get():
        raise ConnectionError(f"{VARIABLE} is set, so no connection is made")


def _listen() -> None:
    """Once in a process: a hook cannot be taken away again."""
    global _listens
    if not _listens:
        sys.addaudithook(_refuse)
        _listens = True


_listens = False
