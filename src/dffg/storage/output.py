"""Output directories and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from dffg.errors import OutputError

_STAGING_SUFFIX = ".dffg"
_READABLE = 0o755
# How files end that other commands and runtimes write.
_FILES = (".npz", ".npy", ".safetensors", ".onnx", ".xml", ".pte", ".pt2", ".pt", ".pth")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_directory(path: Path, *, force: bool = False) -> None:
    """Refuse, before any work, a directory that cannot be written or would be overwritten."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give a directory with --out.")
    if path.suffix in _FILES and not path.exists():
        raise OutputError(f"{path} is called as a file, and what is written is a directory; give --out {path.stem}.")
    if Path.cwd().is_relative_to(path.resolve()):
        raise OutputError(f"{path} holds the current directory, which cannot be replaced; give one below it.")
    if path.is_mount():
        raise OutputError(f"{path} is where a disk is mounted, which cannot be replaced; give a directory in it.")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise OutputError(f"{path} is not empty; choose another directory or overwrite the result in it with --force.")
    _check_writable(path)


def check_file(path: Path, *, force: bool = False) -> None:
    """As `check_directory`, for a single file."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory; give a file name.")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; choose another name or overwrite it with --force.")
    _check_writable(path)


def unfinished_directory(out: Path) -> Path:
    """Beside a result, while it is learned: OUT.partial."""
    out = out.absolute()
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """A place that this process alone writes to; what dead processes have left beside it is removed.

    The operating system holds the lock, on a file beside `path`, and gives it up with the process however that ends.
    Raises OutputError where another process has it.
    """
    path = path.resolve()
    lock = path.with_name(f".{path.name}.lock")
    with _parents_of(path):
        with _explained(path):
            descriptor = _lock(lock)
        if descriptor is None:
            raise OutputError(f"{path} is being written by another process; wait for it, or choose another place.")
        try:
            for left in _leftovers(path):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def staged_directory(path: Path, *, commit_mark: str | None = None, replaced: Collection[str] = ()) -> Iterator[Path]:
    """A directory beside `path` to write into; put in place when the block ends well, removed when it does not.

    In a directory that holds other files these stay, and files are moved one by one; else old and new are exchanged in
    one step. `commit_mark` names a file that is removed first and moved last: where it is, the files beside it belong
    to it. Files called as in `replaced` go, also where none of their name takes their place.
    """
    path = path.resolve()
    with temporary_beside(path) as staging:
        yield staging
        _publish(staging, path, commit_mark, frozenset(replaced))


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """As `staged_directory`, for a single file; the name keeps its ending."""
    path = path.resolve()
    with temporary_beside(path) as staging:
        yield staging / path.name
        _flush(staging / path.name)
        os.replace(staging / path.name, path)
        _flush(path.parent)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A directory on the same disk as long as the block lasts; should the process die in it, `claimed` removes it."""
    with _parents_of(path), _explained(path):
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_STAGING_SUFFIX, dir=path.parent))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Make them; those made go again where nothing has come into them."""
    missing = [parent for parent in path.parents if not parent.exists()]
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the disk refuses, in words."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _publish(staging: Path, path: Path, commit_mark: str | None, replaced: frozenset[str]) -> None:
    for entry in staging.iterdir():
        _flush(entry)
    staging.chmod(stat.S_IMODE(path.stat().st_mode) if path.is_dir() else _READABLE)
    _flush(staging)
    if not path.exists() or not any(path.iterdir()):
        os.replace(staging, path)
    elif not (_holds_no_others(path, staging, replaced) and exchange(staging, path)):
        _move_one_by_one(staging, path, commit_mark, replaced)
    _flush(path.parent)


def _holds_no_others(path: Path, staging: Path, replaced: frozenset[str]) -> bool:
    return {entry.name for entry in path.iterdir()} <= {entry.name for entry in staging.iterdir()} | replaced


def _move_one_by_one(staging: Path, path: Path, commit_mark: str | None, replaced: frozenset[str]) -> None:
    if commit_mark is not None:
        (path / commit_mark).unlink(missing_ok=True)
        _flush(path)
    for name in replaced - {entry.name for entry in staging.iterdir()}:
        (path / name).unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == commit_mark):
        if entry.name == commit_mark:
            _flush(path)
        os.replace(entry, path / entry.name)
    _flush(path)


def exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system or the file system cannot.

    renameat2 of Linux with RENAME_EXCHANGE: at no moment is there neither. Numbers are those of linux/fs.h, fcntl.h.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    places = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return bool(rename(*places, _RENAME_EXCHANGE) == 0)


def _lock(path: Path) -> int | None:
    """An open descriptor with the lock on this file, which is made for it; None where another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        # The process before has removed the file in the meantime: what is locked here is no longer there.
        os.close(descriptor)


def _leftovers(path: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}(\.partial)?\.\w{{8}}{re.escape(_STAGING_SUFFIX)}")
    return [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]


def _flush(path: Path) -> None:
    """Onto the disk: a file's content, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_writable(path: Path) -> None:
    existing = path.absolute().parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file, so {path} cannot be made.")
    for place in (existing, path) if path.is_dir() else (existing,):
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise OutputError(f"{place} cannot be written: {error.strerror}.") from error
