"""The loop that every generator with a gradient optimizer shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dffg.synthesis.chain import Visit

Loss = Callable[[Tensor], Tensor]


def descend(
    images: Tensor,
    loss_of: Loss,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    scheduler: Any = None,
    after: Callable[[], None] | None = None,
) -> Iterator[Visit]:
    """Visit `images`, a leaf that `optimizer` moves, before every one of its `steps` updates but the last.

    `scheduler` is stepped with the loss where it is a plateau schedule; `after` runs behind every update.
    """
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(images)
        yield Visit(images=images.detach().clone(), step=step, loss=float(loss.detach()))
        if step == steps - 1:
            return
        loss.backward()
        optimizer.step()
        step_schedule(scheduler, float(loss.detach()))
        if after is not None:
            after()


def step_schedule(scheduler: Any, loss: float) -> None:
    """One step of a schedule of either kind."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    elif scheduler is not None:
        scheduler.step()


def per_image_norm(terms: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the squared norm over channels, averaged over images where there is an image axis."""
    sums = [term.square().sum(-1) for term in terms]
    return torch.stack([value.mean() if value.dim() else value for value in sums]).sum()
