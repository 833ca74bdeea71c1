"""Look at a network before any work: what it remembers, what will be quantized, how long it will take."""

from __future__ import annotations

import itertools
import time

from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.graph.fold import fold_batch_norms, is_foldable
from dffg.pipeline.calibration import held_out
from dffg.quant.in_float import float_operations
from dffg.quant.placement import place, prepare
from dffg.quant.widths import quantized_layers
from dffg.report.inspection import BatchNormSummary, Inspection
from dffg.synthesis.generators import chain_of
from dffg.synthesis.snapshots import chains_needed
from dffg.targets import ONNXRUNTIME

_TIMED_PASSES = 3


def inspect(captured: Captured, config: SynthesisConfig | None = None, *, notes: tuple[str, ...] = ()) -> Inspection:
    """Summarize a network and time a few passes of the configured batch; nothing is kept."""
    config = config or SynthesisConfig()
    module = prepare(fold_batch_norms(captured))
    placement = place(module)
    in_float = float_operations(module, placement, ONNXRUNTIME)
    seconds = _seconds_per_pass(captured, config)
    passes = sum(chains_needed(made) * made.steps for made in (config, held_out(config)))
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
