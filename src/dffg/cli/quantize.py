"""`dffg quantize` and `dffg finetune`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dffg.cli.network import data_at, load
from dffg.cli.options import config_options, device_option, memory_option, model_options, output_options, worker_options
from dffg.cli.terminal import console_for, progress_on, say, says_what_is_kept, show_result, typed, workers_for
from dffg.config import RECIPES, LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.targets import TARGETS

if TYPE_CHECKING:
    from rich.console import Console

    from dffg.report.progress import ProgressView
    from dffg.spec import ImageSpec


@click.command()
@model_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Real data to calibrate with, in place of synthesis."
)
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled data to measure accuracy on.")
@memory_option
@device_option
@worker_options
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@output_options
@config_options(QuantizationConfig)
@config_options(LearningConfig)
@config_options(SynthesisConfig)
def quantize(out: Path, force: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Quantize MODEL without data; write a verified file with a report."""
    console = console_for(quiet, as_json)
    unused = _without_effect(options["LearningConfig"], options["QuantizationConfig"])
    say(unused, quiet)
    with _run_on(console, out, force, options) as (view, common):
        common["notes"] += (unused,) if unused else ()
        calibration = data_at(options["calibration"], common["spec"], labelled=False)
        from dffg.pipeline.steps import quantize as run

        with workers_for(options["ray"], options["workers"], view) as workers:
            result = run(
                synthesis=options["SynthesisConfig"],
                quantization=options["QuantizationConfig"],
                learning=options["LearningConfig"],
                calibration=calibration,
                memory_limit=options["memory_limit"],
                workers=workers,
                **common,
            )
    return show_result(result, console, quiet, as_json)


def _without_effect(given: LearningConfig, quantization: QuantizationConfig) -> str | None:
    """What to say of options of learning where there is none; they are allowed, as one recipe may serve many widths."""
    learning = given.completed(quantization)
    unused = ["--learning-seconds"] if given.learning_seconds and not learning.reconstruction_steps else []
    unused += ["--learning-images"] if given.learning_images and not learning.learns else []
    if not unused:
        return None
    what = "no rounding is learned" if learning.learns else "nothing is learned"
    return (
        f"{' and '.join(unused)} without effect: {what} at {quantization.label} with the recipe {learning.recipe}; "
        "--recipe balanced learns, and so does --reconstruction-steps above 0"
    )


@click.command()
@model_options
@click.option(
    "--from", "quantized", required=True, type=click.Path(path_type=Path), help="Directory that quantize has written."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=RECIPES["best"]["finetune_steps"],
    show_default=True,
    help="Steps of training.",
)
@click.option(
    "--images", type=click.IntRange(min=1), help="Images to learn from  [default: those that lie beside the network]"
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="Runtime to write for  [default: the earlier one]")
@click.option("--seed", type=int, help="Seed of every random choice  [default: that of the earlier result]")
@device_option
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled data to measure accuracy on.")
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@output_options
def finetune(
    quantized: Path,
    out: Path,
    steps: int,
    images: int | None,
    target: str | None,
    seed: int | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Train a quantized MODEL on synthetic images, with its float network as the teacher."""
    from dffg.report.result import REPORT_FILE, load_report

    console = console_for(quiet, as_json)
    earlier = load_report(quantized / REPORT_FILE)
    with _run_on(console, out, force, options, earlier.input) as (_, common):
        from dffg.pipeline.steps import finetune as run

        result = run(quantized=quantized, steps=steps, images=images, target=target, seed=seed, **common)
    return show_result(result, console, quiet, as_json)


@contextmanager
def _run_on(
    console: Console, out: Path, force: bool, options: dict[str, Any], known: ImageSpec | None = None
) -> Iterator[tuple[ProgressView, dict[str, Any]]]:
    """Progress, and what every run is given; an interruption within says what is kept."""
    from dffg.storage.output import check_directory

    check_directory(out, force=force)
    with progress_on(console) as view:
        view.stage("load")
        loaded, spec, notes = load(options, console.quiet, known)
        common = {
            "model": loaded.model,
            "out": out,
            "spec": spec,
            "evaluation": data_at(options["evaluation"], spec, labelled=True),
            "device": options["device"],
            "name": loaded.name,
            "command": typed(),
            "notes": notes,
            "force": force,
            **view.listeners,
        }
        with says_what_is_kept(out):
            yield view, common
