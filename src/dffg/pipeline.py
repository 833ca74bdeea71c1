"""The steps in order: capture, synthesize, quantize, export, verify, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dffg.captured import Captured, capture
from dffg.checkpoint import Checkpoint
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.device import AUTO, described, device_named, moved
from dffg.ends import columns
from dffg.errors import InputError
from dffg.evaluation.data import Data
from dffg.evaluation.metrics import Score, score
from dffg.export.runtimes import runtime_for, runtime_of
from dffg.fold import fold_batch_norms
from dffg.images import Array, ImageSpec, SyntheticSet
from dffg.output import file_hash, staged_directory, temporary_beside
from dffg.quant.decide import Decided, decide, prepare_float
from dffg.quant.learning import LearningCallback, learn
from dffg.quant.placement import prepare
from dffg.quant.stored import load_parameters, save_parameters, tensors_of
from dffg.report.command import python_call
from dffg.report.environment import describe_environment, package_version, peak_memory_bytes
from dffg.report.html import render_page
from dffg.report.notes import equalization_notes, memory_notes, width_notes
from dffg.report.result import (
    IMAGES_FILE,
    PAGE_FILE,
    PARAMETERS_FILE,
    REPORT_FILE,
    Images,
    Report,
    Result,
    load_report,
)
from dffg.run import SHOWN_DIGITS, Clock, Run, StageCallback, describe_work, place, unfinished_work
from dffg.synthesis import ProgressCallback, passes_per_chain, snapshots_per_chain, synthesize_set
from dffg.verify import accuracy_of, verify

if TYPE_CHECKING:
    from dffg.distributed import Workers

_HELD_OUT_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Images for calibration, in memory, and where they came from."""

    inputs: Array
    made: SyntheticSet | None
    description: Images


def quantize(
    model: nn.Module | ExportedProgram | Captured,
    out: str | Path,
    *,
    spec: ImageSpec | None = None,
    input_shape: tuple[int, ...] | None = None,
    synthesis: SynthesisConfig | None = None,
    quantization: QuantizationConfig | None = None,
    learning: LearningConfig | None = None,
    calibration: Data | None = None,
    evaluation: Data | None = None,
    memory_limit: int | None = None,
    device: str = AUTO,
    workers: Workers | None = None,
    name: str | None = None,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    force: bool = False,
    on_stage: StageCallback | None = None,
    progress: ProgressCallback | None = None,
    learning_progress: LearningCallback | None = None,
) -> Result:
    """From a trained network to a verified quantized file in directory `out`, without data.

    `out` receives `model.onnx` (or what `quantization.target` loads), `images.npz` (the images it was quantized with),
    `parameters.npz` (all integers and scales), `report.json` and the same as a page, `report.html`, all or nothing.
    `spec` describes the input; with only `input_shape`, pixels in [0, 1] are assumed. `learning` says what is learned
    from the images beyond ranges; by default, something below 8 bits. What is learned is kept in `out`.partial until
    all is done: the same call goes on from there if it was stopped. `calibration` takes the place of synthesis, as the
    yardstick; `evaluation` adds accuracy to the report. `memory_limit`: bytes a step of synthesis may take, see
    `synthesize_set`. `device` makes the images and learns from them, see `device_named`. `workers`, of `ray_workers`,
    make the same images sooner. `command` is what the report says to do for the same result, by default this call.
    Raises a `DffgError` that says what to do.
    """
    configurations = {"synthesis": synthesis, "quantization": quantization, "learning": learning}
    data = {"calibration": calibration, "evaluation": evaluation}
    command = command or python_call("quantize", out, spec=spec, input_shape=input_shape, **configurations, **data)
    synthesis, quantization = synthesis or SynthesisConfig(), quantization or QuantizationConfig()
    learning = (learning or LearningConfig()).completed(quantization)
    runtime_of(quantization.target)
    clock, where = Clock(on_stage), device_named(device)
    with place(Path(out), force):
        with clock.stage("capture"):
            captured = _captured(model, spec, input_shape, name)
        _refuse_accuracy(captured, evaluation)
        source = "real" if calibration is not None else "synthetic"
        run = Run(
            captured=captured,
            out=Path(out),
            name=name or captured.name,
            command=command,
            notes=notes,
            evaluation=evaluation,
            clock=clock,
            progress=progress,
            learning_progress=learning_progress,
            work=describe_work(captured, synthesis, quantization, learning, data=source, device=where),
            device=where,
            memory_limit=memory_limit,
            workers=workers,
        )
        with unfinished_work(run, force):
            return _quantize(run, synthesis, quantization, learning, calibration)


def _quantize(
    run: Run,
    synthesis: SynthesisConfig,
    quantization: QuantizationConfig,
    learning: LearningConfig,
    calibration: Data | None,
) -> Result:
    captured, clock = run.captured, run.clock
    with clock.stage("synthesis"):
        made_with = synthesis.for_learning(learning.learning_images) if learning.learns else synthesis
        kept = run.kept(captured.module, made_with) if learning.learns else None
        images = _calibration_images(run, made_with, calibration, kept)
    with clock.stage("calibration"):
        ranges_from = images.inputs[: synthesis.count]
        decided = decide(captured, _batches(ranges_from, synthesis.batch_size), quantization)
    if learning.learns:
        decided = _learn(run, decided, images, learning, synthesis.seed)
    return _finish(run, decided, images, quantization, learning, synthesis)


def finetune(
    model: nn.Module | ExportedProgram | Captured,
    quantized: str | Path,
    out: str | Path,
    *,
    steps: int,
    images: int | None = None,
    target: str | None = None,
    spec: ImageSpec | None = None,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    device: str = AUTO,
    evaluation: Data | None = None,
    name: str | None = None,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    force: bool = False,
    on_stage: StageCallback | None = None,
    progress: ProgressCallback | None = None,
    learning_progress: LearningCallback | None = None,
) -> Result:
    """Train a network on that `quantize` has written to directory `quantized`; the result goes to `out`, as there.

    `model` is the float network it came from, the teacher. The images are those that lie beside it, or, where more are
    asked for, new ones made as those were. `device` is said in `quantize`. `target` is that of the earlier result, or
    another that quantizes the same tensors. Stopped work goes on, and `command` is said, as in `quantize`.
    """
    given = {"images": images, "spec": spec, "input_shape": input_shape, "seed": seed, "evaluation": evaluation}
    command = command or python_call("finetune", quantized, out, steps=steps, **given)
    clock, where = Clock(on_stage), device_named(device)
    with place(Path(out), force):
        earlier = load_report(Path(quantized) / REPORT_FILE)
        quantization = replace(earlier.quantization, target=target or earlier.quantization.target)
        runtime_of(quantization.target)
        with clock.stage("capture"):
            captured = _captured(model, spec, input_shape, name)
        _refuse_accuracy(captured, evaluation)
        synthesis = replace(earlier.synthesis or SynthesisConfig(), seed=seed)
        start = file_hash(Path(quantized) / REPORT_FILE)[:SHOWN_DIGITS]
        run = Run(
            captured=captured,
            out=Path(out),
            name=name or captured.name,
            command=command,
            notes=notes,
            evaluation=evaluation,
            clock=clock,
            progress=progress,
            learning_progress=learning_progress,
            work=describe_work(
                captured, synthesis, quantization, start=start, steps=steps, images=images, device=where
            ),
            device=where,
        )
        with unfinished_work(run, force):
            return _finetune(run, Path(quantized), earlier, quantization, synthesis, steps, images)


def _finetune(
    run: Run,
    quantized: Path,
    earlier: Report,
    quantization: QuantizationConfig,
    synthesis: SynthesisConfig,
    steps: int,
    images: int | None,
) -> Result:
    captured, clock = run.captured, run.clock
    with clock.stage("capture"):
        float_module, _ = prepare_float(captured, replace(quantization, equalize=earlier.equalized))
        parameters = load_parameters(quantized / PARAMETERS_FILE, float_module, quantization.runtime)
    with clock.stage("synthesis"):
        calibration = _images_beside(quantized, captured, earlier, images)
        if calibration is None:
            synthesis = synthesis.for_learning(images or 0)
            kept = run.kept(captured.module, synthesis)
            calibration = _calibration_images(run, synthesis, None, kept)
    scheme = None if quantization.is_mixed else quantization.scheme
    decided = Decided(
        float_module=float_module, parameters=parameters, scheme=scheme, mixed=None, equalized=earlier.equalized
    )
    learning = LearningConfig(
        recipe="fast", learning_images=len(calibration.inputs), reconstruction_steps=0, finetune_steps=steps
    )
    decided = _learn(run, decided, calibration, learning, synthesis.seed)
    return _finish(run, decided, calibration, quantization, learning, synthesis)


def _refuse_accuracy(captured: Captured, evaluation: Data | None) -> None:
    if evaluation is not None and columns(captured.module):
        raise InputError("top-1 is not defined for a network with several outputs; leave --eval out.")


def _captured(
    model: nn.Module | ExportedProgram | Captured,
    spec: ImageSpec | None,
    input_shape: tuple[int, ...] | None,
    name: str | None,
) -> Captured:
    return model if isinstance(model, Captured) else capture(model, spec=spec, input_shape=input_shape, name=name)


def _finish(
    run: Run,
    decided: Decided,
    images: Calibration,
    quantization: QuantizationConfig,
    learning: LearningConfig,
    synthesis: SynthesisConfig,
) -> Result:
    """Write the file, verify it in its runtime, and report."""
    captured, clock, quantized = run.captured, run.clock, decided.insert()
    runtime = runtime_of(quantization.target)
    with clock.stage("held-out images"):
        held_out = _held_out_images(run, synthesis)
    with staged_directory(run.out, commit_mark=REPORT_FILE) as staging, temporary_beside(run.out) as scratch:
        written, reference = staging / runtime.file, scratch / runtime.file
        with clock.stage("export"):
            runtime.write(quantized, captured.spec, written)
            runtime.write_float(prepare(fold_batch_norms(captured)), captured.spec, reference)
            _save_images(images, captured.spec, staging / IMAGES_FILE)
            save_parameters(decided.parameters, staging / PARAMETERS_FILE)
        with clock.stage("verify"):
            facts = verify(runtime, quantized, written, reference, held_out)
        accuracy = None
        if run.evaluation is not None:
            with clock.stage("evaluation"):
                accuracy = accuracy_of(runtime, written, reference, run.evaluation)
        result = Result(
            model=run.name,
            scheme=quantization.label,
            target=quantization.target,
            seed=synthesis.seed,
            version=package_version("dffg"),
            environment=describe_environment(torch.get_num_threads(), described(run.device)),
            input=captured.spec,
            images=images.description,
            synthesis=None if images.made is None else images.made.config,
            quantization=quantization,
            equalized=decided.equalized,
            learning=learning,
            mixed=quantized.mixed,
            command=run.command,
            seconds=clock.seconds(),
            peak_memory_bytes=peak_memory_bytes(),
            accuracy=accuracy,
            float_operations=quantized.float_operations,
            zero_variance_channels=captured.zero_variance_channels,
            notes=(
                *run.notes,
                *captured.notes,
                *runtime.notes,
                *width_notes(quantized, quantization.runtime),
                *equalization_notes(decided),
                *memory_notes(images.made, synthesis),
            ),
            files={entry.name: file_hash(entry) for entry in sorted(staging.iterdir())},
            path=str(run.out),
            **facts,
        )
        (staging / PAGE_FILE).write_text(render_page(result.to_dict(), images.made), encoding="utf-8")
        result = replace(result, files={**result.files, PAGE_FILE: file_hash(staging / PAGE_FILE)})
        result.save(staging / REPORT_FILE)
    run.kept().remove()
    return result


def evaluate(path: str | Path, data: Data) -> Score:
    """Top-1 of a file on labelled data, in the runtime that its name's ending tells."""
    if data.labels is None:
        raise InputError("the data has no labels.")
    outputs = np.concatenate(list(runtime_for(Path(path)).run(Path(path), data.batches())))
    return score(outputs, data.labels)


def _images_beside(directory: Path, captured: Captured, earlier: Report, count: int | None) -> Calibration | None:
    """The images of an earlier result, where they are as many as asked for."""
    made = SyntheticSet.load(directory / IMAGES_FILE) if earlier.synthesis else None
    if made is None or (count is not None and count > len(made)):
        return None
    if made.spec.shape != captured.spec.shape:
        raise InputError(f"the images in {directory} have shape {made.spec.shape}, not {captured.spec.shape}.")
    made = made.first(count or len(made))
    return Calibration(inputs=made.inputs, made=made, description=replace(earlier.images, count=len(made)))


def _calibration_images(
    run: Run, config: SynthesisConfig, data: Data | None, checkpoint: Checkpoint | None
) -> Calibration:
    captured = run.captured
    if data is not None:
        if data.spec.shape != captured.spec.shape:
            raise InputError(f"calibration data has shape {data.spec.shape}, the network takes {captured.spec.shape}.")
        inputs = np.concatenate(list(data.first(config.count).batches()))
        description = Images(source="real images", count=len(inputs), chains=0, steps=0, passes=0)
        return Calibration(inputs=inputs, made=None, description=description)
    made = synthesize_set(
        captured.on(run.device),
        config,
        progress=run.progress,
        checkpoint=checkpoint,
        memory_limit=run.memory_limit,
        workers=run.workers,
    )
    description = Images(
        source=_source(config),
        count=len(made),
        chains=len(made.losses),
        steps=config.steps,
        passes=passes_per_chain(config),
    )
    return Calibration(inputs=made.inputs, made=made, description=description)


def _learn(run: Run, decided: Decided, images: Calibration, config: LearningConfig, seed: int) -> Decided:
    inputs = torch.from_numpy(images.inputs)
    with run.clock.stage("learning"):
        start = decided.parameters
        kept = run.kept(decided.float_module, inputs, config, seed, *tensors_of(start).values())
        teacher = moved(decided.float_module, run.device)
        learned = learn(teacher, start, inputs, config, seed, run.learning_progress, kept)
    return replace(decided, parameters=learned)


def _source(config: SynthesisConfig) -> str:
    return "synthetic images" + ("" if config.generator == "dffg" else f" by {config.generator}")


def _batches(inputs: Array, size: int) -> Iterator[Tensor]:
    yield from torch.split(torch.from_numpy(inputs), size)


def _save_images(images: Calibration, spec: ImageSpec, path: Path) -> None:
    if images.made is not None:
        images.made.save(path)
    elif spec.is_pixels:
        np.savez_compressed(path, images=spec.to_uint8(images.inputs))
    else:
        np.savez_compressed(path, features=images.inputs)


def _held_out_images(run: Run, config: SynthesisConfig) -> Tensor:
    """Images of another seed, never seen in calibration: those kept of one chain of ours, whatever calibrated."""
    if not config.is_fast_gradient:
        config = SynthesisConfig(count=config.count, seed=config.seed)
    count = min(config.count, config.batch_size * snapshots_per_chain(config))
    held_out = replace(config, seed=config.seed + _HELD_OUT_SEED_OFFSET, count=count)
    captured = run.captured.on(run.device)
    made = synthesize_set(captured, held_out, progress=run.progress, memory_limit=run.memory_limit)
    return torch.from_numpy(made.inputs)
