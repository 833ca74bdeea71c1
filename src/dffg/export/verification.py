"""Does the written file do what was decided? Every question is put to the runtime itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dffg.evaluation.metrics import agreement, power, power_ratio_db
from dffg.export import onnxruntime
from dffg.export.runtime import Runtime
from dffg.graph.ends import columns
from dffg.graph.nodes import Tap, nodes_by_name, stored_tensor
from dffg.quant.quantized import Quantized

# Of a number of parts, what to call after each.
Ticks = Callable[[int], Callable[[], None]]
REQUIRED_EQUAL_SHARE = 0.999
REQUIRED_STEPS = 1
ALLOWED_OUTPUT_ERROR = 1e-3
# Ties that fall otherwise grow through a network until the answers differ as much as quantization makes them differ;
# the noise stays as large as it was (0.86 times in MobileNetV2 in OpenVINO, which fuses more when it is not watched).
ALLOWED_UNWATCHED_NOISE = 1.5
# Input values of a batch, two pictures of 224 pixels: all integers of a network are held for it, and caches hold some.
_BATCH = 2 * 3 * 224 * 224
# Steps beside the middle between two integers that float32 arithmetic in another order can be off, with room.
_TIE = 1e-4


def no_ticks(total: int) -> Callable[[], None]:
    """For nobody who listens."""
    return lambda: None


@dataclass(frozen=True, kw_only=True)
class SimulationMatch:
    """The runtime beside the torch simulation.

    equal_share and max_abs_difference_in_steps compare integers layer by layer, every layer of the simulation given
    the runtime's own inputs: a difference in rounding is then seen where it arises. Ties may be rounded either way.
    worst_tensor is where fewest are equal. output_error compares the output in the same way: largest difference over
    largest value. unwatched_noise is the power of what quantization does to the float network's answer, over that of
    the same when the file is watched, which may change what a runtime fuses. top1 is the share of equal
    predictions end to end, where rounding ties have grown through the network; None where there are several outputs,
    of which the worst counts.
    """

    top1: float | None
    equal_share: float
    max_abs_difference_in_steps: int
    worst_tensor: str
    output_error: float
    unwatched_noise: float
    count: int

    @property
    def holds(self) -> bool:
        """Whether every layer computes in the runtime what was decided in torch."""
        return (
            self.equal_share >= REQUIRED_EQUAL_SHARE
            and self.max_abs_difference_in_steps <= REQUIRED_STEPS
            and self.output_error <= ALLOWED_OUTPUT_ERROR
            and self.unwatched_noise <= ALLOWED_UNWATCHED_NOISE
        )


def match_simulation(
    quantized: Quantized,
    path: Path,
    images: Tensor,
    runtime: Runtime = onnxruntime.RUNTIME,
    ticks: Ticks = no_ticks,
) -> SimulationMatch:
    """Run file and simulation on the same images, end to end and layer by layer.

    `ticks` is told the number of batches, and gives what to call after each.
    """
    watched, plain = runtime.watch(quantized, path), runtime.open(path, 0).run
    equal, total, apart = Counter[str](), Counter[str](), 0
    outputs, unwatched, followed, simulated, in_float = [], [], [], [], []
    batches = _batches(images)
    tick = ticks(len(batches))
    for batch in batches:
        output, values = watched(batch.numpy())
        steps_apart, answer = _follow(quantized, batch, values)
        for name, steps in steps_apart.items():
            equal[name] += int((steps == 0).sum())
            total[name] += steps.size
            apart = max(apart, int(steps.max()))
        outputs.append(output)
        unwatched.append(plain(batch.numpy()))
        followed.append(answer)
        with torch.no_grad():
            simulated.append(quantized.module(batch).numpy())
            in_float.append(quantized.float_module(batch).numpy())
        tick()
    worst = min(total, key=lambda name: equal[name] / total[name])
    parts = columns(quantized.module)
    written, plainly = np.concatenate(outputs), np.concatenate(unwatched)
    answered, floats = np.concatenate(followed), np.concatenate(in_float)
    return SimulationMatch(
        top1=None if parts else agreement(np.concatenate(simulated), plainly),
        equal_share=equal[worst] / total[worst],
        max_abs_difference_in_steps=apart,
        worst_tensor=worst,
        output_error=max(starmap(_error, by_output(parts, answered, written))),
        unwatched_noise=max(starmap(_noise, by_output(parts, plainly, written, floats))),
        count=len(images),
    )


def _batches(images: Tensor) -> tuple[Tensor, ...]:
    return torch.split(images, max(1, _BATCH // images[0].numel()))


def by_output(parts: dict[str, slice], *joined: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], ...]]:
    """The arrays cut into outputs, whose columns `parts` names; whole where it names none."""
    return [tuple(values[:, part] for values in joined) for part in parts.values()] or [joined]


def _error(answer: NDArray[np.float32], written: NDArray[np.float32]) -> float:
    return float(np.abs(answer - written).max() / max(np.abs(written).max(), 1e-30))


def _noise(plain: NDArray[np.float32], written: NDArray[np.float32], in_float: NDArray[np.float32]) -> float:
    return power(plain - in_float) / max(power(written - in_float), 1e-30)


def _follow(
    quantized: Quantized, images: Tensor, values: dict[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Steps between simulation and runtime for every tensor, and the output, all from the runtime's own integers."""
    tensor_of, nodes = {tensor.levels: tensor.name for tensor in quantized.tensors}, nodes_by_name(quantized.module)
    rounded = {nodes[name].args[0].name for name in tensor_of}  # type: ignore[union-attr]
    before: dict[str, Tensor] = {}
    steps: dict[str, NDArray[Any]] = {}

    def visit(name: str, result: Any) -> Any:
        if name in rounded:
            before[name] = result
        if name not in tensor_of:
            return result
        levels = torch.from_numpy(values[tensor_of[name]])
        steps[tensor_of[name]] = _steps_apart(quantized.module, nodes[name], before, levels)
        return levels

    with torch.no_grad():
        return steps, Tap(quantized.module, visit).run(images).numpy()


def _steps_apart(
    module: fx.GraphModule, quantizer: fx.Node, before: dict[str, Tensor], levels: Tensor
) -> NDArray[np.int16]:
    """How far integers are from those that a value rounds to. Of a tie, as float32 has it, both neighbors are right."""
    value, scale, zero_point, quant_min, quant_max = quantizer.args
    exact = before.pop(value.name) / stored_tensor(module, scale) + stored_tensor(module, zero_point)  # type: ignore
    apart = (exact.clamp(quant_min, quant_max) - levels).abs() - 0.5 - _TIE  # type: ignore[arg-type]
    return apart.ceil().clamp(min=0).to(torch.int16).numpy()


def layer_sqnr_db(quantized: Quantized, images: Tensor) -> dict[str, float]:
    """Signal to noise ratio of every layer's result in the quantized network against the float network, in dB.

    Noise adds up along the network: this says where it comes from, not what one layer alone would cost. By layer name.
    """
    value_of = {tensor.name: tensor.value for tensor in quantized.tensors}
    carriers = {layer.name: (layer.result, value_of.get(layer.result, layer.result)) for layer in quantized.layers}
    signal, noise = dict.fromkeys(carriers, 0.0), dict.fromkeys(carriers, 0.0)
    for batch in _batches(images):
        reference = _results(quantized.float_module, batch, {before for before, _ in carriers.values()})
        simulated = _results(quantized.module, batch, {after for _, after in carriers.values()})
        for name, (before, after) in carriers.items():
            signal[name] += float(reference[before].square().sum(dtype=torch.float64))
            noise[name] += float((reference[before] - simulated[after]).square().sum(dtype=torch.float64))
    return {name: power_ratio_db(signal[name], noise[name]) for name in carriers}


def _results(module: fx.GraphModule, images: Tensor, names: set[str]) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}

    def visit(name: str, result: Any) -> Any:
        if name in names:
            results[name] = result
        return result

    with torch.no_grad():
        Tap(module, visit).run(images)
    return results
