"""The command line: parses, calls, prints. Everything heavy is imported when a command runs."""

from __future__ import annotations

import _thread
import copy
import dataclasses
import functools
import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dffg.config import ArrayConfig, LearningConfig, QuantizationConfig, SynthesisConfig, parse_bytes
from dffg.errors import DffgError, InputError, StoppedError
from dffg.recipe import dump, recipe_option, recipe_parameters, with_place
from dffg.targets import TARGETS

if TYPE_CHECKING:
    from rich.console import Console

    from dffg.captured import Captured
    from dffg.distributed import Workers
    from dffg.evaluation.data import Data
    from dffg.images import ImageSpec, SyntheticSet
    from dffg.jobs import Job
    from dffg.models import Loaded
    from dffg.report.result import Result

VERIFICATION_FAILED, INTERRUPTED = 3, StoppedError.exit_code
_SOON = 0.05
_TYPED = "dffg.cli.typed"
Command = TypeVar("Command", bound=Callable[..., Any])
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def config_options(config: type) -> Callable[[Command], Command]:
    """Add one option per field of a configuration; the command is given the made configuration under its type."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            made = _made(config, values)
            names = {field.name for field in dataclasses.fields(config)}
            rest = {name: value for name, value in values.items() if name not in names}
            return command(**rest, **{config.__name__: made})

        for field in reversed(dataclasses.fields(config)):
            wrapper = _option(field)(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def _made(config: type, values: dict[str, Any]) -> Any:
    """A configuration from options; what was not given keeps its default."""
    names = [field.name for field in dataclasses.fields(config)]
    try:
        return config(**{name: values[name] for name in names if values[name] is not None})
    except InputError as error:
        raise with_place(error) from None


def _option(field: dataclasses.Field[Any]) -> Callable[[Any], Any]:
    if field.name == "recipe":
        return recipe_option(field.metadata["choices"], f"Options from a YAML file. {field.metadata['help']}")
    return click.option(*_flags(field), **_settings(field))


def _flags(field: dataclasses.Field[Any]) -> tuple[str, str]:
    return f"--{(field.metadata['flag'] or field.name).replace('_', '-')}", field.name


def _settings(field: dataclasses.Field[Any]) -> dict[str, Any]:
    choices = field.metadata["choices"]
    kind = click.Choice(choices) if choices else _TYPES[str(field.type).partition(" ")[0]]
    shown = field.default is not None
    default = f"  [default: {field.default}]" if shown else ""
    return {"type": kind, "default": None, "help": field.metadata["help"] + default}


def model_options(command: Command) -> Command:
    """The network and what its input looks like."""
    for option in (
        click.option("--trust", is_flag=True, help="Allow a .pt2 file with pickled content, which can run code."),
        click.option("--bounds", help="Lowest and highest pixel or feature value, like 0:1 or -130:30."),
        click.option("--std", help="Per-channel standard deviation, like 0.229,0.224,0.225."),
        click.option("--mean", help="Per-channel mean, like 0.485,0.456,0.406."),
        click.option("--input", "input_shape", help="Shape of one input, like 3x224x224; of several, 3x224x224/8."),
        click.option("--weights", type=click.Path(path_type=Path), help="Weights: .safetensors, or .pth of tensors."),
        click.argument("model"),
    ):
        command = option(command)
    return command


memory_option = click.option(
    "--memory-limit",
    callback=lambda context, parameter, value: None if value is None else parse_bytes(value),
    help="Most memory for a step of synthesis, like 2GB; batches are halved to fit  [default: what is available]",
)


def worker_options(command: Command) -> Command:
    """Where tasks run."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            callback=_needs_ray,
            help="With --ray: tasks at once  [default: all processors]",
        ),
        click.option(
            "--ray",
            is_flag=False,
            is_eager=True,
            flag_value="local",
            metavar="[ADDRESS]",
            help="Run on all processors of this machine, or of the Ray cluster at ADDRESS (auto, or HOST:PORT).",
        ),
    ):
        command = option(command)
    return command


def _needs_ray(context: click.Context, _: click.Parameter, workers: int | None) -> int | None:
    if workers is not None and context.params["ray"] is None:
        raise InputError("--workers is given without --ray; give both, or neither.")
    return workers


@contextmanager
def _workers(ray: str | None, workers: int | None, view: Any) -> Iterator[Workers | None]:
    if ray is None:
        yield None
        return
    from dffg.distributed import ray_workers

    view.stage("start Ray")
    with ray_workers(ray, count=workers) as started:
        yield started


def output_options(command: Command) -> Command:
    """How much is printed, and how errors are shown."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table."),
        click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dffg")
def cli() -> None:
    """Data-free quantization: from a trained network to a verified file of 8 bits or fewer, without data.

    MODEL is demo:NAME, timm:NAME, torchvision:NAME, package.module:factory, or a .pt2 or .onnx file.
    """


@cli.command()
@model_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Real data to calibrate with, in place of synthesis."
)
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled data to measure accuracy on.")
@memory_option
@worker_options
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@output_options
@config_options(QuantizationConfig)
@config_options(LearningConfig)
@config_options(SynthesisConfig)
def quantize(out: Path, force: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Quantize MODEL without data; write a verified file with a report."""
    from dffg.output import check_directory

    console = _console(quiet, as_json)
    quantization, synthesis = options["QuantizationConfig"], options["SynthesisConfig"]
    check_directory(out, force=force)
    with _progress(console) as view:
        view.stage("load")
        loaded, spec, notes = _load(options, quiet)
        calibration = _data(options["calibration"], spec, labelled=False)
        evaluation = _data(options["evaluation"], spec, labelled=True)
        from dffg.pipeline import quantize as run

        with _says_what_is_kept(out), _workers(options["ray"], options["workers"], view) as workers:
            result = run(
                loaded.model,
                out,
                spec=spec,
                synthesis=synthesis,
                quantization=quantization,
                learning=options["LearningConfig"],
                calibration=calibration,
                evaluation=evaluation,
                memory_limit=options["memory_limit"],
                workers=workers,
                name=loaded.name,
                command=_typed(),
                notes=notes,
                force=force,
                on_stage=view.stage,
                progress=view.update,
                learning_progress=view.update_learning,
            )
    return _show_result(result, console, quiet, as_json)


@cli.command()
@model_options
@click.option(
    "--from", "quantized", required=True, type=click.Path(path_type=Path), help="Directory that quantize has written."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Steps of training.")
@click.option(
    "--images", type=click.IntRange(min=1), help="Images to learn from  [default: those that lie beside the network]"
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="Runtime to write for  [default: the earlier one]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled data to measure accuracy on.")
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@output_options
def finetune(
    quantized: Path,
    out: Path,
    steps: int,
    images: int | None,
    target: str | None,
    seed: int,
    force: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Train a quantized MODEL on synthetic images, with its float network as the teacher."""
    from dffg.output import check_directory

    console = _console(quiet, as_json)
    check_directory(out, force=force)
    with _progress(console) as view:
        view.stage("load")
        loaded, spec, notes = _load(options, quiet)
        evaluation = _data(options["evaluation"], spec, labelled=True)
        from dffg.pipeline import finetune as run

        with _says_what_is_kept(out):
            result = run(
                loaded.model,
                quantized,
                out,
                steps=steps,
                images=images,
                target=target,
                spec=spec,
                seed=seed,
                evaluation=evaluation,
                name=loaded.name,
                command=_typed(),
                notes=notes,
                force=force,
                on_stage=view.stage,
                progress=view.update,
                learning_progress=view.update_learning,
            )
    return _show_result(result, console, quiet, as_json)


@contextmanager
def _says_what_is_kept(out: Path) -> Iterator[None]:
    from dffg.output import unfinished_directory

    try:
        yield
    except KeyboardInterrupt:
        kept = unfinished_directory(out)
        if not kept.exists():
            raise
        raise StoppedError(f"interrupted; {kept} has what was done, and the same command goes on from there.") from None


def _show_result(result: Result, console: Console, quiet: bool, as_json: bool) -> int:
    if as_json:
        click.echo(result.to_json())
    elif not quiet:
        from dffg.report.terminal import render

        console.print(render(result))
    if not result.verified:
        click.echo(f"dffg: verification failed: {result.problems[0]}. The file was written for inspection.", err=True)
        return VERIFICATION_FAILED
    return 0


@cli.command()
@model_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, .npz, .safetensors or .npy, or a folder of PNG files.",
)
@memory_option
@worker_options
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@recipe_option((), "Options from a YAML file.")
@output_options
@config_options(ArrayConfig)
@config_options(SynthesisConfig)
def synthesize(out: Path, force: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Make calibration images for MODEL and save them for any tool."""
    from dffg.handover import check_array
    from dffg.output import check_directory, check_file, claimed, staged_directory, staged_file

    is_file, form = out.suffix in (".npz", ".safetensors", ".npy"), options["ArrayConfig"]
    if out.suffix != ".npy" and form != ArrayConfig():
        raise InputError(f"--layout and --values describe .npy files, and --out is {out}; leave them out.")
    (check_file if is_file else check_directory)(out, force=force)
    console = _console(quiet, as_json)
    with claimed(out), _progress(console) as view:
        view.stage("load")
        loaded, spec, _ = _load(options, quiet)
        check_array(spec, form)
        from dffg.synthesis import synthesize_set

        captured = _capture(loaded, spec, view)
        config, limit = options["SynthesisConfig"], options["memory_limit"]
        with _workers(options["ray"], options["workers"], view) as workers:
            view.stage("synthesis")
            made = synthesize_set(captured, config, progress=view.update, memory_limit=limit, workers=workers)
        with staged_file(out) if is_file else staged_directory(out) as target:
            _save(made, target, form)
    if as_json:
        click.echo(json.dumps({"count": len(made), "path": str(out), "loss": made.snapshots[-1].loss}))
    elif not quiet:
        losses = [snapshot.loss for snapshot in made.snapshots if snapshot.loss is not None]
        walked = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
        click.echo(f"{len(made)} images{walked}: {out}")
    return 0


def _save(made: SyntheticSet, target: Path, form: ArrayConfig) -> None:
    if target.suffix != ".npy":
        made.save(target)
        return
    import numpy as np

    from dffg.handover import array

    np.save(target, array(made, form))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled data: folder or .npz.")
@click.option("--input", "input_shape", help="Shape of one input, where the file does not hold it.")
@click.option("--mean", help="Per-channel mean, where the file does not hold it.")
@click.option("--std", help="Per-channel standard deviation, where the file does not hold it.")
@click.option("--bounds", help="Lowest and highest pixel or feature value, where the file does not hold them.")
@output_options
def evaluate(file: Path, data: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Measure the top-1 accuracy of FILE in its runtime: .onnx, .xml (OpenVINO), .pt2 (torch) or .pte (ExecuTorch)."""
    from dffg.evaluation.data import load_data
    from dffg.export.runtimes import runtime_for
    from dffg.pipeline import evaluate as run

    known = runtime_for(file).read_spec(file)
    score = run(file, load_data(data, _describe_input(known, options), labelled=True))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(score)))
    elif not quiet:
        click.echo(f"top-1 {score.top1:.2f} +- {score.standard_error:.2f} % on {score.count} examples")
    return 0


@cli.command()
@model_options
@output_options
@config_options(SynthesisConfig)
def inspect(quiet: bool, as_json: bool, **options: Any) -> int:
    """Show BatchNorm layers, what will be quantized and the time it will take; nothing is synthesized."""
    console = _console(quiet, as_json)
    with _progress(console) as view:
        view.stage("load")
        loaded, spec, notes = _load(options, quiet)
        from dffg.inspection import inspect as run
        from dffg.report.terminal import render_inspection

        captured = _capture(loaded, spec, view)
        view.stage("measure one pass")
        found = run(captured, options["SynthesisConfig"], notes=notes)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    elif not quiet:
        console.print(render_inspection(found))
    return 0


@cli.command()
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
def report(directories: tuple[Path, ...], out: Path, force: bool, quiet: bool, as_json: bool, **_options: Any) -> int:
    """Write report.html anew in every result directory, and compare several results on one page."""
    from dffg.output import check_file
    from dffg.report.comparison import run_of
    from dffg.report.html import compare, rebuild
    from dffg.report.result import PAGE_FILE

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


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the results' directories.")
@worker_options
@click.option("--trust", is_flag=True, help="Allow .pt2 files with pickled content, which can run code.")
@click.option("--force", is_flag=True, help="Make every result anew.")
@output_options
def batch(
    file: Path, out: Path, ray: str | None, workers: int | None, quiet: bool, as_json: bool, **flags: bool
) -> int:
    """Quantize many networks by many schemes, as FILE (YAML) says; what is there already is not made again."""
    from dffg.jobs import read_jobs
    from dffg.report.terminal import render_batch

    known, flags = dict(recipe_parameters(quantize)), {name: flags[name] for name in ("trust", "force")}
    jobs = {job.name: _job_command(job, known, out, flags["trust"]) for job in read_jobs(file, known)}
    missing = {name: command for name, command in jobs.items() if flags["force"] or not _is_there(out / name, command)}
    console = _console(quiet, as_json)
    with _progress(console) as view, _workers(ray, workers, view) as elsewhere:
        failures = _run_jobs(missing, flags["force"], elsewhere, view)
    found = _summarize(out, jobs, failures)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        console.print(render_batch(found, out))
    if failures:
        click.echo(f"dffg: {len(failures)} of {len(jobs)} jobs failed; the same command tries them again.", err=True)
        return DffgError.exit_code
    return 0 if all(run["verified"] for run in found["runs"]) else VERIFICATION_FAILED


def _job_command(job: Job, known: dict[str, click.Parameter], out: Path, trust: bool) -> list[str]:
    """What to type for one job, after all its options are found to be possible."""
    arguments = [*job.arguments(known), *["--trust"] * trust, "--out", str(out / job.name)]
    try:
        values = quantize.make_context("quantize", list(arguments)).params
        quantization = _made(QuantizationConfig, values)
        _made(LearningConfig, values).completed(quantization)
        _made(SynthesisConfig, values)
    except (InputError, click.ClickException) as error:
        raise InputError(
            f"{job.place}: {error.message if isinstance(error, click.ClickException) else error}"
        ) from error
    return arguments


def _is_there(directory: Path, command: list[str]) -> bool:
    """Whether a job's result is there. Raises InputError where that of another job is in its place."""
    from dffg.report.result import REPORT_FILE, read_report

    if not (directory / REPORT_FILE).exists():
        return False
    earlier = shlex.split(read_report(directory / REPORT_FILE)["command"])
    if earlier[2:-1] != command[:-1]:  # the last is its place, which may be written otherwise
        raise InputError(
            f"{directory} holds the result of another job: {shlex.join(earlier)}. Name the job otherwise, remove the "
            "directory, or make all results anew with --force."
        )
    return True


def _run_jobs(jobs: dict[str, list[str]], force: bool, workers: Workers | None, view: Any) -> dict[str, str]:
    """Run all; why some failed, by name."""
    failures: dict[str, str] = {}
    items = [(name, command, force) for name, command in jobs.items()]
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
            context.meta[_TYPED] = ["quantize", *command]
            quantize.invoke(context)
    except StoppedError:
        raise
    except click.ClickException as error:
        return {name: error.message}
    except Exception as error:  # whatever a network of the user raises, the other jobs go on
        return {name: str(error) if isinstance(error, DffgError) else f"{type(error).__name__}: {error}"}
    return {}


def _summarize(out: Path, jobs: dict[str, list[str]], failures: dict[str, str]) -> dict[str, Any]:
    """All results there are, also on the disk, and on a page where there are several."""
    from dffg.output import staged_file
    from dffg.report.comparison import run_of
    from dffg.report.html import compare
    from dffg.report.result import REPORT_FILE, read_report

    reports = {name: read_report(out / name / REPORT_FILE) for name in jobs if name not in failures}
    runs = [dataclasses.asdict(run_of(name, report)) for name, report in reports.items()]
    found = {"runs": runs, "failures": [{"name": name, "error": error} for name, error in failures.items()]}
    with staged_file(out / "batch.json") as staging:
        staging.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if len(reports) > 1:
        compare(reports, out / "batch.html")
    return found


def _typed() -> str:
    return shlex.join(["dffg", *click.get_current_context().meta.get(_TYPED, sys.argv[1:])])


@cli.group()
def recipe() -> None:
    """Options of a command in a YAML file, for --recipe."""


def _optional(parameter: click.Parameter) -> click.Parameter:
    changed = copy.copy(parameter)
    changed.required = False
    return changed


@recipe.command(params=[_optional(parameter) for parameter in quantize.params])
def show(**values: Any) -> None:
    """Print a recipe: all options of quantize with the values they have beside those given here."""
    quantization = _made(QuantizationConfig, values)
    learning = _made(LearningConfig, values).completed(quantization)
    for config in (quantization, learning, _made(SynthesisConfig, values)):
        values.update(dataclasses.asdict(config))
    click.echo(dump({key: values[str(found.name)] for key, found in recipe_parameters(quantize)}), nl=False)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands and options; evaluate it when the shell starts."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "dffg", "_DFFG_COMPLETE").source())


def _load(options: dict[str, Any], quiet: bool) -> tuple[Loaded, ImageSpec, tuple[str, ...]]:
    from dffg.models import load_model

    loaded = load_model(options["model"], weights=options["weights"], trust=options["trust"])
    spec = _describe_input(loaded.spec, options)
    given = loaded.spec is not None and loaded.spec.source != "default"
    if given or options["mean"] or options["std"] or options["bounds"]:
        return loaded, spec, (f"input normalization from {spec.source}", *loaded.notes)
    note = "no --mean, --std or --bounds were given: assuming pixels in [0, 1] without normalization"
    if not quiet:
        click.echo(f"dffg: {note}", err=True)
    return loaded, spec, (note, *loaded.notes)


def _describe_input(known: ImageSpec | None, options: dict[str, Any]) -> ImageSpec:
    """What the network's source says, with what the user says on top; several inputs are separated by slashes."""
    from dffg.images import JointSpec

    names = ("input_shape", "mean", "std", "bounds")
    given = {name: str(options[name]).split("/") for name in names if options.get(name)}
    inputs = list(known.inputs) if isinstance(known, JointSpec) else [known] * max(map(len, given.values()), default=1)
    for name, values in given.items():
        if len(values) not in (1, len(inputs)) or (name == "input_shape" and len(values) != len(inputs)):
            option = name.removesuffix("_shape")
            raise InputError(f"--{option} says {len(values)} things, and there are {len(inputs)} inputs.")
    specs = [
        _describe_one_input(part, {name: values[index % len(values)] for name, values in given.items()})
        for index, part in enumerate(inputs)
    ]
    return specs[0] if len(specs) == 1 else JointSpec.of(specs)


def _describe_one_input(known: ImageSpec | None, options: dict[str, Any]) -> ImageSpec:
    from dffg.images import ImageSpec, parse_bounds, parse_numbers, parse_shape

    changes: dict[str, Any] = {}
    for name, parse in (("mean", parse_numbers), ("std", parse_numbers), ("bounds", parse_bounds)):
        if options.get(name):
            changes[name] = parse(options[name])
    if options.get("input_shape"):
        changes["shape"] = parse_shape(options["input_shape"])
    if known is None and "shape" not in changes:
        raise InputError("the shape of the input is unknown; give it with --input, like --input 3x224x224.")
    if changes.keys() - {"shape"}:
        changes["source"] = "the command line"
    if known is None:
        return ImageSpec(**{"source": "default", **changes})
    return dataclasses.replace(known, **changes)


def _data(path: Path | None, spec: ImageSpec, *, labelled: bool) -> Data | None:
    if path is None:
        return None
    from dffg.evaluation.data import load_data

    return load_data(path, spec, labelled=labelled)


def _capture(loaded: Loaded, spec: ImageSpec, view: Any) -> Captured:
    from dffg.captured import capture

    view.stage("capture")
    return capture(loaded.model, spec=spec, name=loaded.name)


def _console(quiet: bool, as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json, quiet=quiet)


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    from dffg.report.progress import ProgressView

    with ProgressView(console) as view:
        yield view


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops an interruption that comes while it clears up an object; then the main thread gets another."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(_SOON, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Entry point: run a command, turn errors into one message and an exit code."""
    sys.unraisablehook = _interrupt_again
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except DffgError as error:
        if debug:
            raise
        click.echo(f"dffg: {error}", err=True)
        code = error.exit_code
    except OSError as error:
        if debug:
            raise
        click.echo(f"dffg: {error}", err=True)
        code = DffgError.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("dffg: interrupted; nothing was written.", err=True)
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)
