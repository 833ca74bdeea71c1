"""Commands that look at what there is: `dffg evaluate`, `dffg inspect`, `dffg report`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from dffg.cli.network import assumption, captured_from, describe_input, load
from dffg.cli.options import config_options, input_options, model_options, output_options
from dffg.cli.terminal import console_for, progress_on, say
from dffg.config import SynthesisConfig


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled data: folder or .npz.")
@input_options
@output_options
def evaluate(file: Path, data: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Measure the top-1 accuracy of FILE in its runtime: .onnx, .xml (OpenVINO), .pt2 (torch) or .pte (ExecuTorch).

    Files of dffg hold what their input looks like; what is given here goes before it.
    """
    from dffg.evaluation.data import load_data
    from dffg.export.runtimes import runtime_for
    from dffg.pipeline.evaluate import evaluate as run
    from dffg.pipeline.evaluate import require_file

    require_file(file)
    known = runtime_for(file).read_spec(file)
    examples = load_data(data, describe_input(known, options), labelled=True)
    say(assumption(known, options) if examples.are_pixels else None, quiet)
    with progress_on(console_for(quiet, as_json)) as view:
        view.stage("evaluation")
        score = run(file, examples, on_count=view.update_count)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(score)))
    elif not quiet:
        click.echo(f"top-1 {score.top1:.2f} +- {score.standard_error:.2f} % on {score.count} examples")
    return 0


@click.command()
@model_options
@output_options
@config_options(SynthesisConfig)
def inspect(quiet: bool, as_json: bool, **options: Any) -> int:
    """Show BatchNorm layers, what will be quantized and the time it will take; nothing is synthesized."""
    console = console_for(quiet, as_json)
    with progress_on(console) as view:
        view.stage("load")
        loaded, spec, notes = load(options, quiet)
        from dffg.pipeline.inspect import inspect as run
        from dffg.report.terminal import render_inspection

        captured = captured_from(loaded, spec, view)
        view.stage("measure one pass")
        found = run(captured, options["SynthesisConfig"], notes=notes)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    elif not quiet:
        console.print(render_inspection(found))
    return 0


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("compare.html"),
    show_default=True,
    help="Page that compares several results.",
)
@click.option("--force", is_flag=True, help="Overwrite an earlier comparison.")
@output_options
def report(directories: tuple[Path, ...], out: Path, force: bool, quiet: bool, as_json: bool) -> int:
    """Write report.html anew in every result directory, and compare several results on one page."""
    from dffg.report.comparison import run_of
    from dffg.report.html import compare, rebuild
    from dffg.report.result import PAGE_FILE
    from dffg.storage.output import check_file

    several = len(directories) > 1
    if several:
        check_file(out, force=force)
    reports = {str(directory): rebuild(directory) for directory in directories}
    if several:
        compare(reports, out)
    written = [str(directory / PAGE_FILE) for directory in directories] + [str(out)] * several
    if as_json:
        runs = [dataclasses.asdict(run_of(name, report)) for name, report in reports.items()]
        click.echo(json.dumps({"written": written, "runs": runs}, indent=2))
    elif not quiet:
        click.echo("\n".join(written))
    return 0
