"""What a recipe learns after ranges are chosen: the rounding of every block, then the whole network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dffg.config import FinetuneConfig, LearningConfig, ReconstructionConfig
from dffg.quant.finetune import finetune
from dffg.quant.parameters import Parameters
from dffg.quant.reconstruct import BlockRecord, reconstruct
from dffg.storage.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class LearningProgress:
    """Where learning stands, in blocks that are reconstructed or steps of fine-tuning, and what to say of the last."""

    done: int
    total: int
    detail: str


LearningCallback = Callable[[LearningProgress], None]


def learn(
    float_module: fx.GraphModule,
    parameters: Parameters,
    images: Tensor,
    config: LearningConfig,
    seed: int,
    progress: LearningCallback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Parameters:
    """Reconstruct, then fine-tune, as the (completed) configuration says; images: (count, *shape) network inputs.

    checkpoint: where what is learned is kept, and found if this was stopped before. The caller's random numbers on the
    CPU go on as if nothing had been learned.
    """
    tell = progress or (lambda state: None)

    def after_block(record: BlockRecord) -> None:
        errors = f"error {record.error_before:.2%} -> {record.error_after:.2%}"
        tell(
            LearningProgress(done=record.index + 1, total=record.count, detail=f"block {record.block.output}: {errors}")
        )

    def after_step(step: int, loss: float) -> None:
        tell(LearningProgress(done=step + 1, total=config.finetune_steps, detail=f"fine-tuning: loss {loss:.3f}"))

    with torch.random.fork_rng(devices=[]):
        if config.reconstruction_steps:
            reconstruction = ReconstructionConfig(
                iterations=config.reconstruction_steps, seed=seed, max_seconds=config.learning_seconds
            )
            parameters = reconstruct(float_module, parameters, images, reconstruction, after_block, checkpoint)
        if config.finetune_steps:
            tuning = FinetuneConfig(iterations=config.finetune_steps, seed=seed)
            parameters = finetune(float_module, parameters, images, tuning, after_step, checkpoint)
    return parameters
