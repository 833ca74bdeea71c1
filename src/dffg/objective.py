"""The loss of `statistics.py` made cheap, from what `probe.py` measures. The tests hold the two together."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.captured import Captured
from dffg.probe import LayerStatistics, Probe


class Objective:
    """Distance of a batch from what a network remembers, ready to be evaluated many times.

    Equal to `batch_norm_statistics_loss` of the BatchNorm inputs, value and gradient, but for rounding.
    """

    def __init__(self, captured: Captured, *, per_image: bool = False) -> None:
        self._probe = Probe(captured)
        self._per_image = per_image

    def __call__(self, images: Tensor) -> Tensor:
        """Loss of a batch of network inputs; differentiable once."""
        return torch.stack([distance(layer) for layer in self._probe(images, per_image=self._per_image)]).mean()


def distance(layer: LayerStatistics) -> Tensor:
    """Distance of one layer from what it remembers: mean_error^2 + (std_ratio - 1)^2, averaged over live channels."""
    terms = layer.mean_error.square() + (layer.std_ratio - 1).square()
    images = terms.shape[0] if terms.dim() == 2 else 1
    return terms.sum() / (layer.live.sum().clamp(min=1) * images)
