"""The loss of `statistics.py` made cheap, from what `probe.py` measures. The tests hold the two together."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.captured import Captured
from dffg.probe import LayerStatistics, Probe
from dffg.statistics import beyond


class Objective:
    """Distance of a batch from what a network remembers, ready to be evaluated many times.

    Equal to `batch_norm_statistics_loss` of the BatchNorm inputs, value and gradient, but for rounding.
    """

    def __init__(self, captured: Captured, *, per_image: bool = False, slack: float = 0.0) -> None:
        self._probe = Probe(captured)
        self._per_image = per_image
        self._slack = slack

    def __call__(self, images: Tensor) -> Tensor:
        """Loss of a batch of network inputs; differentiable once."""
        layers = self._probe(images, per_image=self._per_image)
        return torch.stack([distance(layer, self._slack) for layer in layers]).mean()


def distance(layer: LayerStatistics, slack: float = 0.0) -> Tensor:
    """Distance of one layer from what it remembers, averaged over live channels.

    max(|mean_error| - slack, 0)^2 + max(|std_ratio - 1| - slack, 0)^2
    """
    terms = beyond(layer.mean_error, slack).square() + beyond(layer.std_ratio - 1, slack).square()
    images = terms.shape[0] if terms.dim() == 2 else 1
    return terms.sum() / (layer.live.sum().clamp(min=1) * images)
