"""The end of a run: write the file, verify it in its runtime, and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.evaluation.metrics import Accuracy
from dffg.export.runtime import Runtime
from dffg.export.runtimes import runtime_of
from dffg.graph.fold import fold_batch_norms
from dffg.machine.device import described
from dffg.machine.environment import describe_environment, package_version, peak_memory_bytes
from dffg.pipeline.calibration import Calibration, held_out_images, save_images
from dffg.pipeline.measure import accuracies_of, verify
from dffg.pipeline.run import Run
from dffg.quant.decide import Decided
from dffg.quant.placement import prepare
from dffg.quant.stored import save_parameters
from dffg.report.html import render_page
from dffg.report.notes import equalization_notes, memory_notes, width_notes
from dffg.report.result import IMAGES_FILE, PAGE_FILE, PARAMETERS_FILE, REPORT_FILE, Result, files_of
from dffg.storage.checkpoint import discard
from dffg.storage.output import file_hash, staged_directory, temporary_beside, unfinished_directory


def finish(
    run: Run,
    decided: Decided,
    images: Calibration,
    quantization: QuantizationConfig,
    learning: LearningConfig,
    synthesis: SynthesisConfig,
    from_noise: Decided | None = None,
) -> Result:
    """Write the file, verify it in its runtime, and report, beside what ranges from noise would have given."""
    clock, spec, quantized = run.clock, run.captured.spec, decided.insert()
    runtime = runtime_of(quantization.target)
    with clock.stage("held-out images"):
        held_out = held_out_images(run, synthesis)
    earlier = files_of(run.out)
    with (
        staged_directory(run.out, commit_mark=REPORT_FILE, replaced=earlier) as staging,
        temporary_beside(run.out) as scratch,
    ):
        written, reference = staging / runtime.file, scratch / runtime.file
        with clock.stage("export"):
            runtime.write(quantized, spec, written)
            runtime.write_float(prepare(fold_batch_norms(run.captured)), spec, reference)
            save_images(images, spec, staging / IMAGES_FILE)
            save_parameters(decided.parameters, staging / PARAMETERS_FILE)
        with clock.stage("verify"):
            measured = verify(runtime, quantized, written, reference, held_out, clock.ticks)
        accuracy, baseline = _accuracies(run, runtime, reference, written, from_noise, scratch)
        result = Result(
            scheme=quantization.label,
            target=quantization.target,
            seed=synthesis.seed,
            quantization=quantization,
            learning=learning,
            equalized=decided.equalized,
            mixed=quantized.mixed,
            float_operations=tuple(quantized.float_operations),
            float_reasons=quantized.float_operations,
            accuracy=accuracy,
            noise_baseline=baseline,
            notes=(
                *run.notes,
                *run.captured.notes,
                *runtime.notes,
                *width_notes(quantized, quantization),
                *equalization_notes(decided),
                *memory_notes(images.made, synthesis),
            ),
            files={entry.name: file_hash(entry) for entry in sorted(staging.iterdir())},
            **_origin(run, images),
            **measured,
        )
        (staging / PAGE_FILE).write_text(render_page(result.to_dict(), images.made), encoding="utf-8")
        result = replace(result, files={**result.files, PAGE_FILE: file_hash(staging / PAGE_FILE)})
        result.save(staging / REPORT_FILE)
    discard(unfinished_directory(run.out))
    return result


def _accuracies(
    run: Run, runtime: Runtime, reference: Path, written: Path, from_noise: Decided | None, scratch: Path
) -> tuple[Accuracy | None, Accuracy | None]:
    """Of the file, and of what noise would have given, where there is data to measure them on."""
    if run.evaluation is None:
        return None, None
    files = [written]
    with run.clock.stage("evaluation"):
        if from_noise is not None:
            files.append(scratch / f"noise{runtime.suffixes[0]}")
            runtime.write(from_noise.insert(), run.captured.spec, files[1])
        accuracy, *baseline = accuracies_of(runtime, reference, files, run.evaluation, run.clock.ticks)
    return accuracy, baseline[0] if baseline else None


def _origin(run: Run, images: Calibration) -> dict[str, Any]:
    """The fields of a `Result` that say what it was made of, by what, and in what time."""
    return {
        "model": run.name,
        "input": run.captured.spec,
        "zero_variance_channels": run.captured.zero_variance_channels,
        "images": images.description,
        "synthesis": None if images.made is None else images.made.config,
        "command": run.command,
        "path": str(run.out),
        "version": package_version("dffg"),
        "environment": describe_environment(torch.get_num_threads(), described(run.device)),
        "seconds": run.clock.seconds(),
        "peak_memory_bytes": peak_memory_bytes(),
    }
