"""The lowest and the highest legal input of a network, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from dffg.machine.device import HOST
from dffg.spec import ImageSpec

Bounds = tuple[Tensor, Tensor]


def input_bounds(spec: ImageSpec, device: torch.device = HOST) -> Bounds:
    """Lowest and highest legal network input as tensors that broadcast against a batch."""
    low, high = (torch.from_numpy(bound).to(device) for bound in spec.input_bounds())
    return low, high
