"""How far one answer is from another, of every example."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

# How far from 1 the sum of probabilities may be: they are float32, or half of it.
_SUM_TOLERANCE = 1e-3


def divergence(reference: Tensor, output: Tensor, parts: Collection[slice] = ()) -> Tensor:
    """KL(softmax(reference) || softmax(output)) of every example, in nats, over the flattened answer.

    Where the reference holds probabilities, both are taken as they are: a second softmax would hide what differs.
    (batch, ...) -> (batch,), in the precision of what is given. parts: columns of several outputs that were joined:
    each is an answer of its own, and the sum is over them.
    """
    reference, output = reference.flatten(1), output.flatten(1)
    apart = [_divergence(reference[:, part], output[:, part]) for part in parts or (slice(None),)]
    return torch.stack(apart).sum(0)


def _divergence(reference: Tensor, output: Tensor) -> Tensor:
    if _are_probabilities(reference):
        reference, output = (answer.clamp(min=torch.finfo(answer.dtype).tiny).log() for answer in (reference, output))
    log_p, log_q = F.log_softmax(reference, 1), F.log_softmax(output, 1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)


def _are_probabilities(answer: Tensor) -> bool:
    """Whether a network's answer has been through a softmax, as most exports of Keras have."""
    sums = answer.sum(1, dtype=torch.float64)
    return answer.shape[1] > 1 and bool((answer >= 0).all() and ((sums - 1).abs() <= _SUM_TOLERANCE).all())
