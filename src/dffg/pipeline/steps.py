"""The steps in order: capture, synthesize, quantize; `finish.py` exports, verifies and reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dffg.config import AUTO, LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.data import Data
from dffg.export.runtimes import runtime_of
from dffg.export.verification import Ticks, no_ticks
from dffg.graph.captured import Captured, capture
from dffg.graph.nodes import moved
from dffg.machine.device import device_named
from dffg.pipeline.calibration import Calibration, calibration_images, images_beside, noise_images
from dffg.pipeline.finish import finish
from dffg.pipeline.measure import check_answer
from dffg.pipeline.run import (
    SHOWN_DIGITS,
    Clock,
    CountCallback,
    Run,
    StageCallback,
    describe_work,
    place,
    unfinished_work,
)
from dffg.quant.decide import Decided, decide, prepare_float, with_ranges_from
from dffg.quant.learning import LearningCallback, learn
from dffg.quant.stored import load_parameters, tensors_of
from dffg.quant.widths import with_known_range
from dffg.report.command import python_call
from dffg.report.result import (
    PARAMETERS_FILE,
    REPORT_FILE,
    Report,
    Result,
    load_report,
)
from dffg.spec import Array, ImageSpec
from dffg.storage.output import file_hash
from dffg.synthesis.fitting import fitting
from dffg.synthesis.synthesize import ProgressCallback

if TYPE_CHECKING:
    from dffg.machine.distributed import Workers


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
    on_count: CountCallback | None = None,
    progress: ProgressCallback | None = None,
    learning_progress: LearningCallback | None = None,
) -> Result:
    """From a trained network to a verified quantized file in directory `out`, without data.

    `out` receives `model.onnx` (or what `quantization.target` loads), `images.npz` (the images it was quantized
    with), `parameters.npz` (all integers and scales), `report.json` and the same as a page, `report.html`, all or
    nothing. `spec` describes the input; with only `input_shape`, pixels in [0, 1] are assumed. `learning` says what
    is learned from the images beyond ranges; by default nothing at 8 bits, the recipe balanced below. What is
    learned is kept in `out`.partial until all is done: the same call goes on from there if it was stopped.
    `calibration` takes the place of synthesis, as the yardstick; `evaluation` adds accuracy to the report, beside
    that with ranges from noise. `memory_limit`: bytes a step of synthesis may take, see `synthesize_set`. `device`
    makes the images and learns from them, see `device_named`. `workers`, of `ray_workers`, make the same images
    sooner. `command` is what the report says to do for the same result, by default this call. `on_stage` is told
    which stage begins, `on_count` how much of it is done, where that is counted. Raises a `DffgError` that says
    what to do.
    """
    configurations = {"synthesis": synthesis, "quantization": quantization, "learning": learning}
    given: dict[str, Any] = {"spec": spec, "input_shape": input_shape, **configurations, "calibration": calibration}
    given |= {"evaluation": evaluation, "memory_limit": memory_limit, "device": None if device == AUTO else device}
    command = command or python_call("quantize", out, **given)
    synthesis, quantization = synthesis or SynthesisConfig(), quantization or QuantizationConfig()
    learning = (learning or LearningConfig()).completed(quantization)
    runtime_of(quantization.target)
    quantization = with_known_range(quantization)
    clock, where = Clock(on_stage, on_count), device_named(device)
    with place(Path(out), force):
        with clock.stage("capture"):
            captured = _captured(model, spec, input_shape, name)
        check_answer(captured, evaluation)
        source = "real" if calibration is not None else "synthetic"
        # Without a limit the batch is fitted when images are made, and the work does not depend on what memory is free.
        fitted = synthesis if memory_limit is None else fitting(captured, synthesis, memory_limit)
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
            work=describe_work(captured, fitted, quantization, learning, data=source, device=where),
            device=where,
            memory_limit=memory_limit,
            workers=workers,
        )
        with unfinished_work(run.out, run.work, force):
            return _quantize(run, fitted, synthesis, quantization, learning, calibration)


def _quantize(
    run: Run,
    fitted: SynthesisConfig,
    synthesis: SynthesisConfig,
    quantization: QuantizationConfig,
    learning: LearningConfig,
    calibration: Data | None,
) -> Result:
    captured, clock = run.captured, run.clock
    with clock.stage("synthesis"):
        made_with = fitted.for_learning(learning.learning_images) if learning.learns else fitted
        kept = run.kept(captured.module, made_with) if learning.learns else None
        images = calibration_images(run, made_with, calibration, kept)
    with clock.stage("calibration"):
        ranges_from = _batches(images.for_ranges(synthesis.count), synthesis.batch_size, clock.ticks)
        decided = decide(captured, ranges_from, quantization)
    from_noise = None
    if run.evaluation is not None:
        with clock.stage("noise baseline"):
            noise = _batches(noise_images(captured, synthesis.seed), synthesis.batch_size)
            from_noise = with_ranges_from(captured, decided, noise, quantization)
    if learning.learns:
        learning = replace(learning, learning_images=len(images.inputs))
        decided = _learn(run, decided, images, learning, synthesis.seed)
    return finish(run, decided, images, quantization, learning, synthesis, from_noise)


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
    seed: int | None = None,
    device: str = AUTO,
    evaluation: Data | None = None,
    name: str | None = None,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    force: bool = False,
    on_stage: StageCallback | None = None,
    on_count: CountCallback | None = None,
    progress: ProgressCallback | None = None,
    learning_progress: LearningCallback | None = None,
) -> Result:
    """Train a network on that `quantize` has written to directory `quantized`; the result goes to `out`, as there.

    `model` is the float network it came from, the teacher; its input is described as then where it is not here. The
    images are those that lie beside it, or, where more are asked for, new ones made as those were. `seed` is that of
    the earlier result, too, where none is given. `device` is said in `quantize`. `target` is that of the earlier
    result, or another that quantizes the same tensors. Stopped work goes on, and `command` is said, as in `quantize`.
    """
    given: dict[str, Any] = {"images": images, "target": target, "seed": seed, "spec": spec, "input_shape": input_shape}
    given |= {"device": None if device == AUTO else device, "evaluation": evaluation}
    LearningConfig(learning_images=images or 0, finetune_steps=steps)  # refuses what nobody can mean, before any work
    command = command or python_call("finetune", quantized, out, steps=steps, **given)
    clock, where = Clock(on_stage, on_count), device_named(device)
    with place(Path(out), force):
        earlier = load_report(Path(quantized) / REPORT_FILE)
        quantization = replace(earlier.quantization, target=target or earlier.quantization.target)
        runtime_of(quantization.target)
        synthesis = replace(earlier.synthesis or SynthesisConfig(), seed=earlier.seed if seed is None else seed)
        with clock.stage("capture"):
            known = None if input_shape or isinstance(model, Captured) else earlier.input
            captured = _captured(model, spec or known, input_shape, name)
        _require_same_input(captured.spec, earlier.input, quantized)
        check_answer(captured, evaluation)
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
                captured,
                synthesis,
                quantization,
                finetune_steps=steps,
                learning_images=images,
                device=where,
                **{"the earlier result": start},
            ),
            device=where,
        )
        with unfinished_work(run.out, run.work, force):
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
        parameters = load_parameters(quantized / PARAMETERS_FILE, float_module, quantization.rules)
    with clock.stage("synthesis"):
        calibration = images_beside(quantized, captured, earlier, images)
        if calibration is None:
            synthesis = synthesis.for_learning(images or 0)
            kept = run.kept(captured.module, synthesis)
            calibration = calibration_images(run, synthesis, None, kept)
    decided = Decided(float_module=float_module, parameters=parameters, mixed=None, equalized=earlier.equalized)
    learning = LearningConfig(learning_images=len(calibration.inputs), reconstruction_steps=0, finetune_steps=steps)
    decided = _learn(run, decided, calibration, learning, synthesis.seed)
    return finish(run, decided, calibration, quantization, learning, synthesis)


def _require_same_input(given: ImageSpec, earlier: ImageSpec, quantized: str | Path) -> None:
    """Scales fit the values that the network was quantized for."""
    for one, other in zip(given.parts, earlier.parts):
        found, wanted = ((spec.mean, spec.std, spec.bounds) for spec in (one, other))
        if found != wanted:
            raise InputError(
                f"{quantized} was quantized for inputs with mean, std and bounds {wanted}, and this run has {found}; "
                "give the same, or leave them out."
            )


def _captured(
    model: nn.Module | ExportedProgram | Captured,
    spec: ImageSpec | None,
    input_shape: tuple[int, ...] | None,
    name: str | None,
) -> Captured:
    if not isinstance(model, Captured):
        return capture(model, spec=spec, input_shape=input_shape, name=name)
    if input_shape is not None or spec not in (None, model.spec):
        raise InputError("the network is captured, with its input; leave spec and input_shape out, or capture it anew.")
    return model


def _learn(run: Run, decided: Decided, images: Calibration, config: LearningConfig, seed: int) -> Decided:
    inputs = torch.from_numpy(images.inputs)
    with run.clock.stage("learning"):
        start = decided.parameters
        kept = run.kept(decided.float_module, inputs, config, seed, *tensors_of(start).values())
        teacher = moved(decided.float_module, run.device)
        learned = learn(teacher, start, inputs, config, seed, run.learning_progress, kept)
    return replace(decided, parameters=learned)


def _batches(inputs: Array, size: int, ticks: Ticks = no_ticks) -> Iterator[Tensor]:
    batches = torch.split(torch.from_numpy(inputs), size)
    tick = ticks(len(batches))
    for batch in batches:
        yield batch
        tick()
