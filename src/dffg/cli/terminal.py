"""What commands show, and how they end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dffg.errors import StoppedError

if TYPE_CHECKING:
    from rich.console import Console

    from dffg.machine.distributed import Workers
    from dffg.report.progress import ProgressView
    from dffg.report.result import Result

VERIFICATION_FAILED, INTERRUPTED = 3, StoppedError.exit_code
TYPED = "dffg.cli.typed"


def console_for(quiet: bool, as_json: bool) -> Console:
    """Where results are printed: nowhere, or on standard error where JSON goes to standard output."""
    from rich.console import Console

    return Console(stderr=as_json, quiet=quiet)


def say(note: str | None, quiet: bool) -> None:
    """What a user should know before the work, where there is something: on standard error, beside any result."""
    if note and not quiet:
        click.echo(f"dffg: {note}", err=True)


def progress_on(console: Console) -> ProgressView:
    """Progress with time left."""
    from dffg.report.progress import ProgressView

    return ProgressView(console)


@contextmanager
def workers_for(ray: str | None, workers: int | None, view: ProgressView) -> Iterator[Workers | None]:
    """Workers of Ray, where they are asked for."""
    if ray is None:
        yield None
        return
    from dffg.machine.distributed import ray_workers

    view.stage("start Ray")
    with ray_workers(ray, count=workers) as started:
        yield started


@contextmanager
def says_what_is_kept(out: Path) -> Iterator[None]:
    """An interruption says where the work that is done lies."""
    from dffg.storage.output import unfinished_directory

    try:
        yield
    except KeyboardInterrupt:
        kept = unfinished_directory(out)
        if not kept.exists():
            raise
        raise StoppedError(f"interrupted; {kept} has what was done, and the same command goes on from there.") from None


def show_result(result: Result, console: Console, quiet: bool, as_json: bool) -> int:
    """Print a report; the exit code."""
    if as_json:
        click.echo(result.to_json())
    elif not quiet:
        from dffg.report.terminal import render

        console.print(render(result))
    if not result.verified:
        click.echo(f"dffg: verification failed: {result.problems[0]}. The file was written for inspection.", err=True)
        return VERIFICATION_FAILED
    return 0


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["dffg", *click.get_current_context().meta.get(TYPED, sys.argv[1:])])
