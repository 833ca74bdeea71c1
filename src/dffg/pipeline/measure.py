"""Whether an answer can be compared, and what is measured on a written file, in the runtime it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dffg.errors import InputError
from dffg.evaluation.data import Data, check_folders
from dffg.evaluation.metrics import Accuracy, agreement, check_labels, compare, sqnr_db, why_broken
from dffg.export.runtime import Opened, Runtime, latency_ms
from dffg.export.verification import Ticks, layer_sqnr_db, match_simulation
from dffg.graph.captured import Captured
from dffg.graph.ends import columns
from dffg.quant.quantized import Quantized
from dffg.report.result import Agreement, Latency, Layer, find_problems
from dffg.spec import Array

_BATCH = 16
# Input values on which the simulation is compared with the runtime: 16 pictures of 224 pixels, or more smaller ones.
_SIMULATED_VALUES = 16 * 3 * 224 * 224


def verify(
    runtime: Runtime, quantized: Quantized, written: Path, reference: Path, held_out: Tensor, ticks: Ticks
) -> dict[str, Any]:
    """The fields of a `Result` that a file decides: size, kernels, latency, agreement with simulation and float.

    written, reference: the quantized file and the float one; held_out: (count, ...) network inputs that calibrated
    nothing. ticks: given a number of parts, what to call after each.
    """
    kernels = runtime.count_kernels(written)
    simulated = held_out[: max(1, _SIMULATED_VALUES // held_out[0].numel())]
    match = match_simulation(quantized, written, simulated, runtime, ticks)
    latency = _latency(runtime, reference, written, held_out[:1].numpy()) if runtime.is_timed else None
    batches = [batch.numpy() for batch in torch.split(held_out, _BATCH)]
    expected, answer = (np.concatenate(list(runtime.run(path, batches))) for path in (reference, written))
    agreed = agreement_of(expected, answer, columns(quantized.module))
    noise, layers = layer_sqnr_db(quantized, simulated), {layer.name: layer for layer in quantized.layers}
    return {
        "size_bytes": {"float": runtime.size_bytes(reference), "quantized": runtime.size_bytes(written)},
        "kernels": kernels,
        "latency_ms": latency,
        "simulation_match": match,
        "agreement": agreed,
        "layers": tuple(
            Layer(
                name=name,
                weight_bits=layers[name].weight_bits,
                activation_bits=layers[name].activation_bits,
                sqnr_db=ratio,
                input_range=layers[name].input_range,
            )
            for name, ratio in noise.items()
        ),
        "problems": find_problems(kernels, latency, match, agreed),
    }


def agreement_of(expected: Array, answer: Array, parts: dict[str, slice]) -> Agreement:
    """Two answers beside each other; parts: the columns of every output, where there are several."""
    if not parts:
        top1, ratio, broken = agreement(expected, answer), sqnr_db(expected, answer), why_broken(expected, answer)
        return Agreement(top1=top1, sqnr_db=ratio, count=len(answer), broken=broken)
    ratios = {name: sqnr_db(expected[:, part], answer[:, part]) for name, part in parts.items()}
    worst = min(ratios, key=ratios.__getitem__)
    broken = None
    if not np.isfinite(answer).all():
        broken = "it answers NaN or infinite values"
    elif ratios[worst] <= 0:
        broken = f"its output {worst} has as much noise as signal"
    return Agreement(top1=None, sqnr_db=ratios[worst], count=len(answer), broken=broken, outputs=ratios)


def check_answer(captured: Captured, evaluation: Data | None) -> None:
    """Whether a network's answer can be compared, and scored on this data; asked before any work.

    Raises InputError.
    """
    shape, several = captured.module.graph.output_node().args[0].meta["val"].shape, columns(captured.module)  # type: ignore[union-attr]
    if len(shape) < 2:
        raise InputError(
            f"the network answers with {len(shape)} axes; it must return a batch of classes, (batch, classes), or of "
            "one number each, (batch, 1), without argmax, squeeze or a mean over the batch."
        )
    if evaluation is None:
        return
    if several:
        raise InputError("top-1 is not defined for a network with several outputs; leave --eval out.")
    if evaluation.labels is None:
        raise InputError("the evaluation data has no labels; load it with labelled=True.")
    if evaluation.spec.shape != captured.spec.shape:
        raise InputError(f"evaluation data has shape {evaluation.spec.shape}, the network takes {captured.spec.shape}.")
    check_folders(int(shape[1]), evaluation)
    check_labels(int(shape[1]), evaluation.labels)


def _latency(runtime: Runtime, reference: Path, written: Path, batch: Array) -> Latency:
    threads = torch.get_num_threads()
    files = {"float": reference, "quantized": written}
    runs = {label: runtime.open(path, threads).run for label, path in files.items()}
    return Latency(**latency_ms(runs, batch), batch=len(batch), threads=threads)


def accuracies_of(
    runtime: Runtime, reference: Path, written: Sequence[Path], data: Data, ticks: Ticks
) -> list[Accuracy]:
    """Top-1 of quantized files beside that of the float one, on labelled data, which is read once."""
    assert data.labels is not None
    expected, *others = answers_of([runtime.open(path, 0) for path in (reference, *written)], data, ticks)
    return [compare(expected, other, data.labels) for other in others]


def answers_of(files: Sequence[Opened], data: Data, ticks: Ticks) -> list[Array]:
    """Outputs of every file on all of the data, which is read once; `ticks` as in `verify`."""
    tick = ticks(data.batch_count())
    answers: list[list[Array]] = [[] for _ in files]
    for batch in data.batches():
        for file, answer in zip(files, answers):
            answer.append(file.run(batch))
        tick()
    return list(map(np.concatenate, answers))
