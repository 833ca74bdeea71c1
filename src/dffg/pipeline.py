"""The steps in order: capture, synthesize, quantize, export, verify, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dffg.captured import Captured, capture
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.data import Data
from dffg.evaluation.metrics import Accuracy, Score, agreement, compare, score, sqnr_db
from dffg.export.onnx import write_float, write_quantized
from dffg.export.onnxruntime import count_kernels, latency_ms, run
from dffg.export.packing import MOST_PACKED_BITS
from dffg.export.verification import layer_sqnr_db, match_simulation
from dffg.fold import fold_batch_norms
from dffg.images import Array, ImageSpec, SyntheticSet
from dffg.output import check_directory, file_hash, staged_directory
from dffg.quant.learning import LearningCallback, learn
from dffg.quant.placement import prepare
from dffg.quant.simulate import Decided, Quantized, decide
from dffg.report.environment import describe_environment, package_version, peak_memory_bytes
from dffg.report.result import Agreement, Images, Latency, Layer, Result, Seconds, find_problems
from dffg.synthesis import ProgressCallback, passes_per_chain, snapshots_per_chain, synthesize_set

MODEL_FILE, IMAGES_FILE, REPORT_FILE = "model.onnx", "images.npz", "report.json"
_HELD_OUT_SEED_OFFSET = 1_000_003
_VERIFIED_BATCH = 16

StageCallback = Callable[[str], None]


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
    name: str | None = None,
    notes: tuple[str, ...] = (),
    force: bool = False,
    on_stage: StageCallback | None = None,
    progress: ProgressCallback | None = None,
    learning_progress: LearningCallback | None = None,
) -> Result:
    """From a trained network to a verified quantized file in directory `out`, without data.

    `out` receives `model.onnx`, `images.npz` (the images it was quantized with) and `report.json`, all or nothing.
    `spec` describes the input; with only `input_shape`, pixels in [0, 1] are assumed. `learning` says what is learned
    from the images beyond ranges; by default, something below 8 bits. `calibration` takes the place of
    synthesis, as the yardstick; `evaluation` adds accuracy to the report. Raises a `DffgError` that says what to do.
    """
    synthesis, quantization = synthesis or SynthesisConfig(), quantization or QuantizationConfig()
    learning = (learning or LearningConfig()).completed(quantization)
    out = Path(out)
    check_directory(out, force=force)
    clock = _Clock(on_stage)
    with clock.stage("capture"):
        captured = (
            model if isinstance(model, Captured) else capture(model, spec=spec, input_shape=input_shape, name=name)
        )
    with clock.stage("synthesis"):
        made_with = synthesis.for_learning(learning.learning_images) if learning.learns else synthesis
        images = _calibration_images(captured, made_with, calibration, progress)
    with clock.stage("calibration"):
        ranges_from = images.inputs[: synthesis.count]
        decided = decide(captured, _batches(ranges_from, synthesis.batch_size), quantization)
    if learning.learns:
        with clock.stage("learning"):
            decided = _learn(decided, torch.from_numpy(images.inputs), learning, synthesis.seed, learning_progress)
    quantized = decided.insert()
    with staged_directory(out, commit_mark=REPORT_FILE) as staging, tempfile.TemporaryDirectory() as scratch:
        written, reference = staging / MODEL_FILE, Path(scratch) / "float.onnx"
        with clock.stage("export"):
            write_quantized(quantized, captured.spec, written)
            write_float(prepare(fold_batch_norms(captured)), captured.spec, reference)
            _save_images(images, captured.spec, staging / IMAGES_FILE)
        with clock.stage("verify"):
            held_out = _held_out_images(captured, synthesis, progress)
            facts = _verify(quantized, written, reference, held_out)
        accuracy = None
        if evaluation is not None:
            with clock.stage("evaluation"):
                accuracy = _evaluate(written, reference, evaluation)
        result = Result(
            model=name or captured.name,
            scheme=quantization.label,
            target=quantization.target,
            seed=synthesis.seed,
            version=package_version("dffg"),
            environment=describe_environment(torch.get_num_threads()),
            input=captured.spec,
            images=images.description,
            synthesis=made_with if calibration is None else None,
            quantization=quantization,
            learning=learning,
            mixed=quantized.mixed,
            seconds=clock.seconds(),
            peak_memory_bytes=peak_memory_bytes(),
            accuracy=accuracy,
            float_operations=quantized.float_operations,
            zero_variance_channels=captured.zero_variance_channels,
            notes=(*notes, *captured.notes, *_width_notes(quantized), *_equalization_notes(decided)),
            files={entry: file_hash(staging / entry) for entry in (MODEL_FILE, IMAGES_FILE)},
            path=str(out),
            **facts,
        )
        result.save(staging / REPORT_FILE)
    return result


def evaluate(path: str | Path, data: Data) -> Score:
    """Top-1 of an ONNX file in ONNX Runtime on labelled data."""
    if data.labels is None:
        raise InputError("the data has no labels.")
    outputs = np.concatenate(list(run(Path(path), data.batches())))
    return score(outputs, data.labels)


def _calibration_images(
    captured: Captured, config: SynthesisConfig, data: Data | None, progress: ProgressCallback | None
) -> Calibration:
    if data is not None:
        if data.spec.shape != captured.spec.shape:
            raise InputError(f"calibration data has shape {data.spec.shape}, the network takes {captured.spec.shape}.")
        inputs = np.concatenate(list(data.first(config.count).batches()))
        description = Images(source="real images", count=len(inputs), chains=0, steps=0, passes=0)
        return Calibration(inputs=inputs, made=None, description=description)
    made = synthesize_set(captured, config, progress=progress)
    last = made.snapshots[-1]
    description = Images(
        source=_source(config),
        count=len(made),
        chains=last.chain + 1,
        steps=config.steps,
        passes=passes_per_chain(config),
    )
    return Calibration(inputs=made.inputs, made=made, description=description)


def _learn(
    decided: Decided, images: Tensor, config: LearningConfig, seed: int, progress: LearningCallback | None
) -> Decided:
    learned = learn(decided.float_module, decided.parameters, images, config, seed, progress)
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


def _held_out_images(captured: Captured, config: SynthesisConfig, progress: ProgressCallback | None) -> Tensor:
    """Images of another seed, never seen in calibration: those kept of one chain of ours, whatever calibrated."""
    if not config.is_fast_gradient:
        config = SynthesisConfig(count=config.count, seed=config.seed)
    count = min(config.count, config.batch_size * snapshots_per_chain(config))
    held_out = replace(config, seed=config.seed + _HELD_OUT_SEED_OFFSET, count=count)
    return torch.from_numpy(synthesize_set(captured, held_out, progress=progress).inputs)


def _verify(quantized: Quantized, written: Path, reference: Path, held_out: Tensor) -> dict[str, Any]:
    kernels = count_kernels(written)
    match = match_simulation(quantized, written, held_out)
    threads = torch.get_num_threads()
    measured = latency_ms({"float": reference, "quantized": written}, held_out[:1].numpy(), threads=threads)
    latency = Latency(**measured, batch=1, threads=threads)
    batches = [batch.numpy() for batch in torch.split(held_out, _VERIFIED_BATCH)]
    expected, answer = (np.concatenate(list(run(path, batches))) for path in (reference, written))
    noise = layer_sqnr_db(quantized, held_out)
    widths = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in quantized.layers}
    return {
        "size_bytes": {"float": reference.stat().st_size, "quantized": written.stat().st_size},
        "kernels": kernels,
        "latency_ms": latency,
        "simulation_match": match,
        "agreement": Agreement(
            top1=agreement(expected, answer), sqnr_db=sqnr_db(expected, answer), count=len(held_out)
        ),
        "layers": tuple(
            Layer(name=name, weight_bits=widths[name][0], activation_bits=widths[name][1], sqnr_db=ratio)
            for name, ratio in noise.items()
        ),
        "problems": find_problems(kernels, latency, match),
    }


def _width_notes(quantized: Quantized) -> tuple[str, ...]:
    """What fewer than 8 bits bring, and what they do not."""
    notes = []
    if any(layer.weight_bits <= MOST_PACKED_BITS for layer in quantized.layers):
        notes.append("weights of 4 bits and fewer make a smaller file; the runtime computes in int8 all the same")
    if any(layer.weight_bits in range(MOST_PACKED_BITS + 1, 8) for layer in quantized.layers):
        notes.append("weights of 5 to 7 bits are stored in 8: the file is neither smaller nor faster than at 8 bits")
    if any(layer.activation_bits < 8 for layer in quantized.layers):
        notes.append("activations of fewer than 8 bits are clipped and still 8 bits wide: this is not faster")
    return tuple(notes)


def _equalization_notes(decided: Decided) -> tuple[str, ...]:
    if decided.equalized != "activations":
        return ()
    return ("the ranges of channels were evened out, which brings the answer nearer to the float network's",)


def _evaluate(written: Path, reference: Path, data: Data) -> Accuracy:
    assert data.labels is not None
    expected, answer = (np.concatenate(list(run(path, data.batches()))) for path in (reference, written))
    return compare(expected, answer, data.labels)


class _Clock:
    """Times the stages and tells the listener which one begins."""

    def __init__(self, on_stage: StageCallback | None) -> None:
        self._on_stage = on_stage or (lambda name: None)
        self._started = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._on_stage(name)
        started = time.perf_counter()
        yield
        self._spent[name] = time.perf_counter() - started

    def seconds(self) -> Seconds:
        stages = ("capture", "synthesis", "calibration", "learning", "export", "verify")
        return Seconds(
            **{name: self._spent.get(name, 0.0) for name in stages}, total=time.perf_counter() - self._started
        )
