"""Look at a network before any work: what it remembers, what will be quantized, how long it will take."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.graph.fold import fold_batch_norms, is_foldable
from dffg.quant.in_float import float_operations
from dffg.quant.placement import place, prepare
from dffg.quant.widths import quantized_layers
from dffg.spec import ImageSpec
from dffg.synthesis.baselines import chain_of
from dffg.synthesis.snapshots import chains_needed
from dffg.targets import ONNXRUNTIME

_TIMED_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class BatchNormSummary:
    """One BatchNorm call: its name, channels, those without variance, and whether it folds into the layer before."""

    name: str
    channels: int
    zero_variance: int
    folds: bool


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `dffg inspect` shows, for ONNX Runtime.

    float_reasons: what keeps each of `float_operations` from integers. estimated_seconds: synthesis of the configured
    images and of the held-out ones.
    """

    model: str
    input: ImageSpec
    parameters: int
    batch_norms: tuple[BatchNormSummary, ...]
    quantized_layers: int
    quantized_tensors: int
    float_operations: tuple[str, ...]
    float_reasons: dict[str, str]
    seconds_per_pass: float
    estimated_seconds: float
    notes: tuple[str, ...]


def inspect(captured: Captured, config: SynthesisConfig | None = None, *, notes: tuple[str, ...] = ()) -> Inspection:
    """Summarize a network and time a few passes of the configured batch; nothing is kept."""
    config = config or SynthesisConfig()
    module = prepare(fold_batch_norms(captured))
    placement = place(module)
    in_float = float_operations(module, placement, ONNXRUNTIME)
    seconds = _seconds_per_pass(captured, config)
    passes = (chains_needed(config) + 1) * config.steps
    return Inspection(
        model=captured.name,
        input=captured.spec,
        parameters=sum(parameter.numel() for parameter in captured.module.parameters()),
        batch_norms=tuple(
            BatchNormSummary(
                name=norm.name,
                channels=len(norm.running_mean),
                zero_variance=norm.zero_variance_channels,
                folds=is_foldable(norm),
            )
            for norm in captured.batch_norms
        ),
        quantized_layers=len(quantized_layers(module)),
        quantized_tensors=len(placement.source),
        float_operations=tuple(in_float),
        float_reasons=in_float,
        seconds_per_pass=seconds,
        estimated_seconds=seconds * passes,
        notes=(*notes, *captured.notes),
    )


def _seconds_per_pass(captured: Captured, config: SynthesisConfig) -> float:
    """The fastest of a few: the first pass pays for warming up."""
    times = [time.perf_counter()]
    for _ in itertools.islice(chain_of(captured, config)(0), _TIMED_PASSES):
        times.append(time.perf_counter())
    return min(after - before for before, after in itertools.pairwise(times))
