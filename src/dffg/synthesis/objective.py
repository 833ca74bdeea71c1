"""The loss of `statistics.py` made cheap, from what `probe.py` measures. The tests hold the two together."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.graph.captured import Captured
from dffg.synthesis.probe import LayerStatistics, Probe
from dffg.synthesis.statistics import beyond


class Objective:
    """Distance of a batch from what a network remembers, ready to be evaluated many times.

    Equal to `batch_norm_statistics_loss` of the BatchNorm inputs, value and gradient, but for rounding.
    """

    def __init__(self, captured: Captured, *, per_image: bool = False, slack: float = 0.0) -> None:
        self._probe = Probe(captured)
        self._per_image = per_image
        self._slack = slack
        self._shares = torch.cat([live / live.sum().clamp(min=1) for live in self._probe.channels])
        self._layers = len(self._probe.channels)

    def __call__(self, images: Tensor) -> Tensor:
        """Loss of a batch of network inputs; differentiable once."""
        terms = squares(self._probe.side_by_side(images, per_image=self._per_image), self._slack)
        return (terms * self._shares).sum() / (self._layers * (len(terms) if terms.dim() == 2 else 1))


def squares(layer: LayerStatistics, slack: float) -> Tensor:
    """Distance of every channel from what it remembers.

    max(|mean_error| - slack, 0)^2 + max(|std_ratio - 1| - slack, 0)^2
    """
    return beyond(layer.mean_error, slack).square() + beyond(layer.std_ratio - 1, slack).square()
