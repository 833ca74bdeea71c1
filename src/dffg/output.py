"""Output directories and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dffg.errors import OutputError


def check_directory(path: Path, *, force: bool = False) -> None:
    """Refuse, before any work, a directory that cannot be written or would be overwritten."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give a directory with --out.")
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


@contextlib.contextmanager
def staged_directory(path: Path, *, commit_mark: str | None = None) -> Iterator[Path]:
    """A directory beside `path` to write into; moved into place when the block ends well, removed when it does not.

    In a directory that holds other files these stay. `commit_mark` names a file that is removed first and moved last:
    where it is, the files beside it belong to it.
    """
    with _staging(path) as staging:
        yield staging
        _publish(staging, path, commit_mark)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """As `staged_directory`, for a single file; the name keeps its ending."""
    with _staging(path) as staging:
        yield staging / path.name
        os.replace(staging / path.name, path)


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A fresh directory on the same disk; it and parents made for it go when the block fails."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(staging, ignore_errors=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _publish(staging: Path, path: Path, commit_mark: str | None) -> None:
    for entry in staging.iterdir():
        _flush(entry)
    staging.chmod(0o755)
    if not path.exists() or not any(path.iterdir()):
        os.replace(staging, path)
        return
    if commit_mark is not None:
        (path / commit_mark).unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == commit_mark):
        os.replace(entry, path / entry.name)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _check_writable(path: Path) -> None:
    existing = path if path.is_dir() else path.parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file, so {path} cannot be made.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(f"{existing} cannot be written: {error.strerror}.") from error
