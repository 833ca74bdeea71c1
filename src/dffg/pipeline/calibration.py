"""The images of a run: made, given, or those beside an earlier result; and the held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dffg.config import MOST_SEED, SynthesisConfig
from dffg.config.synthesis import DFFG
from dffg.errors import InputError
from dffg.evaluation.data import Data
from dffg.graph.captured import Captured
from dffg.images import SyntheticSet, arrays_of, evenly
from dffg.pipeline.run import Run
from dffg.report.result import IMAGES_FILE, Images, Report
from dffg.spec import Array, ImageSpec
from dffg.storage.checkpoint import Checkpoint
from dffg.synthesis.snapshots import passes_per_chain, snapshots_per_chain
from dffg.synthesis.synthesize import synthesize_set

_HELD_OUT_SEED_OFFSET = 1_000_003
# Noise is all alike: more of it gives no other ranges.
_NOISE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Images for calibration, in memory, and where they came from."""

    inputs: Array
    made: SyntheticSet | None
    description: Images

    def for_ranges(self, count: int) -> Array:
        """At most so many of them: of real ones, which are sorted by class, from all parts."""
        return self.inputs[evenly(len(self.inputs), count)] if self.made is None else self.inputs[:count]


def calibration_images(
    run: Run, config: SynthesisConfig, data: Data | None, checkpoint: Checkpoint | None
) -> Calibration:
    """Examples from all parts of the data that is given, or else images made for this run."""
    if data is not None:
        shape = run.captured.spec.shape
        if data.spec.shape != shape:
            raise InputError(f"calibration data has shape {data.spec.shape}, the network takes {shape}.")
        inputs = np.concatenate(list(data.evenly(config.count).batches()))
        description = Images(source="real images", count=len(inputs), chains=0, steps=0, passes=0)
        return Calibration(inputs=inputs, made=None, description=description)
    made = synthesize_set(
        run.network,
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


def images_beside(directory: Path, captured: Captured, earlier: Report, count: int | None) -> Calibration | None:
    """The images of an earlier result, where they are as many as asked for."""
    made = SyntheticSet.load(directory / IMAGES_FILE) if earlier.synthesis else None
    if made is None or (count is not None and count > len(made)):
        return None
    if made.spec.shape != captured.spec.shape:
        raise InputError(f"the images in {directory} have shape {made.spec.shape}, not {captured.spec.shape}.")
    made = made.first(count or len(made))
    return Calibration(inputs=made.inputs, made=made, description=replace(earlier.images, count=len(made)))


def save_images(images: Calibration, spec: ImageSpec, path: Path) -> None:
    """As `SyntheticSet` does, or as arrays of the same names where they were given."""
    if images.made is not None:
        images.made.save(path)
    else:
        np.savez_compressed(path, **arrays_of(images.inputs, spec))  # type: ignore[arg-type]


def held_out_images(run: Run, config: SynthesisConfig) -> Tensor:
    """Images never seen in calibration."""
    made = synthesize_set(run.network, held_out(config), progress=run.progress, memory_limit=run.memory_limit)
    return torch.from_numpy(made.inputs)


def held_out(config: SynthesisConfig) -> SynthesisConfig:
    """How images of another seed are made beside these: those kept of one chain of ours, whatever calibrates."""
    if not config.is_fast_gradient:
        config = SynthesisConfig(count=config.count, seed=config.seed)
    count = min(config.count, config.batch_size * snapshots_per_chain(config))
    # A seed that is still one, also beside the largest.
    offset = _HELD_OUT_SEED_OFFSET if config.seed + _HELD_OUT_SEED_OFFSET <= MOST_SEED else -_HELD_OUT_SEED_OFFSET
    return replace(config, seed=config.seed + offset, count=count)


def noise_images(captured: Captured, seed: int) -> Array:
    """N(0, 1) network inputs, what many calibrate with where they have no data: (count, *shape)."""
    return synthesize_set(captured, SynthesisConfig(generator="noise", count=_NOISE_IMAGES, seed=seed)).inputs


def _source(config: SynthesisConfig) -> str:
    return "synthetic images" + ("" if config.generator == DFFG else f" by {config.generator}")
