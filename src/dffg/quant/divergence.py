"""How far one answer is from another, of every example."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(reference: Tensor, output: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(output)) of every example, in nats, over the flattened answer.

    (batch, ...) -> (batch,), in the precision of what is given.
    """
    log_p, log_q = F.log_softmax(reference.flatten(1), 1), F.log_softmax(output.flatten(1), 1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
