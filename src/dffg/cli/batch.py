"""`dffg batch`: many networks by many schemes."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dffg.cli.options import make, output_options, worker_options
from dffg.cli.quantize import quantize
from dffg.cli.recipe_file import recipe_parameters
from dffg.cli.terminal import TYPED, VERIFICATION_FAILED, console_for, progress_on, workers_for
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import DffgError, InputError, StoppedError

if TYPE_CHECKING:
    from dffg.cli.jobs_file import Job
    from dffg.machine.distributed import Workers


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the results' directories.")
@worker_options
@click.option("--trust", is_flag=True, help="Allow .pt2 files with pickled content, which can run code.")
@click.option("--force", is_flag=True, help="Make every result anew.")
@output_options
def batch(
    file: Path,
    out: Path,
    ray: str | None,
    workers: int | None,
    trust: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Quantize many networks by many schemes, as FILE (YAML) says; what is there already is not made again."""
    from dffg.cli.jobs_file import read_jobs
    from dffg.report.result import PAGE_FILE
    from dffg.report.terminal import render_batch

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a directory.")
    known = dict(recipe_parameters(quantize))
    jobs = {job.name: _job_command(job, known, out, trust) for job in read_jobs(file, known)}
    missing = {name: command for name, command in jobs.items() if force or not _is_there(out / name, command)}
    console = console_for(quiet, as_json)
    try:
        with progress_on(console) as view, workers_for(ray, workers, view) as elsewhere:
            failures = _run_jobs(missing, force, elsewhere, view)
    except (KeyboardInterrupt, StoppedError):
        if force:
            raise StoppedError(
                "interrupted; the same command makes every result anew, and without --force those that are missing."
            ) from None
        done = sum(_is_there(out / name, command) for name, command in jobs.items())
        raise StoppedError(
            f"interrupted; {done} of {len(jobs)} jobs are done, and the same command goes on with the others."
        ) from None
    found = _summarize(out, jobs, failures)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        console.print(render_batch(found, out))
    broken = [run["name"] for run in found["runs"] if not run["verified"]]
    if quiet:
        for name, reason in failures.items():
            click.echo(f"dffg: {name}: {reason}", err=True)
        for name in broken:
            click.echo(f"dffg: {name}: verification failed; see {out / name / PAGE_FILE}.", err=True)
    if failures:
        click.echo(f"dffg: {len(failures)} of {len(jobs)} jobs failed; the same command tries them again.", err=True)
        return DffgError.exit_code
    return VERIFICATION_FAILED if broken else 0


def _job_command(job: Job, known: dict[str, click.Parameter], out: Path, trust: bool) -> list[str]:
    """What to type for one job, after all its options are found to be possible."""
    arguments = [*job.arguments(known), *["--trust"] * trust, "--out", str(out / job.name)]
    try:
        values = quantize.make_context("quantize", list(arguments)).params
        for config in (QuantizationConfig, LearningConfig, SynthesisConfig):
            make(config, values)
    except (InputError, click.ClickException) as error:
        raise InputError(
            f"{job.place}: {error.message if isinstance(error, click.ClickException) else error}"
        ) from error
    return arguments


def _is_there(directory: Path, command: list[str]) -> bool:
    """Whether a job's result is there and up to date. Raises InputError where that of another job is in its place."""
    from dffg.report.result import REPORT_FILE, read_report

    if not (directory / REPORT_FILE).exists():
        return False
    earlier = read_report(directory / REPORT_FILE).get("command")
    if not isinstance(earlier, str) or _meant(earlier) != _meant(shlex.join(["dffg", "quantize", *command])):
        raise InputError(
            f"{directory} holds the result of another job: {earlier or 'its report does not say which'}. Name the job "
            "otherwise, remove the directory, or make all results anew with --force."
        )
    return not _is_out_of_date(directory / REPORT_FILE, command)


def _is_out_of_date(report: Path, command: list[str]) -> bool:
    """Whether a file that the job names, such as the network or its weights, was written after its result."""
    made = report.stat().st_mtime
    return any(Path(word).is_file() and Path(word).stat().st_mtime > made for word in command)


def _meant(command: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """What a job is, of how it was typed: the network, and its options in any order.

    Without what only allows it, and without its place, which comes last and may be written otherwise.
    """
    try:
        words = [word for word in shlex.split(command) if word != "--trust"]
    except ValueError:  # the report is damaged: no job is typed like this
        return [], []
    return words[:3], sorted(zip(words[3:-1:2], words[4:-1:2]))


def _run_jobs(jobs: dict[str, list[str]], force: bool, workers: Workers | None, view: Any) -> dict[str, str]:
    """Run all; why some failed, by name."""
    from dffg.report.result import REPORT_FILE

    failures: dict[str, str] = {}
    # A result that is there all the same is out of date.
    items = [(name, command, force or Path(command[-1], REPORT_FILE).exists()) for name, command in jobs.items()]
    if workers is None:
        for index, item in enumerate(items, 1):
            view.stage(f"{index}/{len(items)} {item[0]}")
            failures |= run_job(None, item)
        return failures
    view.stage(f"0/{len(items)} jobs done")
    for index, finished in enumerate(workers.map(run_job, items, prepare=os.chdir, shared=os.getcwd()), 1):
        view.stage(f"{index}/{len(items)} jobs done")
        failures |= {finished.item[0]: str(finished.error)} if finished.error else finished.result()
    return failures


def run_job(_: None, item: tuple[str, list[str], bool]) -> dict[str, str]:
    """One job in this process; its name and why it failed, if it did."""
    name, command, force = item
    try:
        with quantize.make_context("quantize", [*command, "--quiet", *["--force"] * force]) as context:
            context.meta[TYPED] = ["quantize", *command]
            quantize.invoke(context)
    except StoppedError:
        raise
    except click.ClickException as error:
        return {name: error.message}
    except (Exception, SystemExit) as error:  # whatever a network of the user raises, the other jobs go on
        return {name: str(error) if isinstance(error, DffgError) else f"{type(error).__name__}: {error}"}
    return {}


def _summarize(out: Path, jobs: dict[str, list[str]], failures: dict[str, str]) -> dict[str, Any]:
    """All results there are, also on the disk, and on a page where there are several."""
    from dffg.report.comparison import run_of
    from dffg.report.html import compare
    from dffg.report.result import REPORT_FILE, read_report
    from dffg.storage.output import staged_file

    reports = {name: read_report(out / name / REPORT_FILE) for name in jobs if name not in failures}
    runs = [dataclasses.asdict(run_of(name, report)) for name, report in reports.items()]
    found = {"runs": runs, "failures": [{"name": name, "error": error} for name, error in failures.items()]}
    with staged_file(out / "batch.json") as staging:
        staging.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if len(reports) > 1:
        compare(reports, out / "batch.html")
    return found
