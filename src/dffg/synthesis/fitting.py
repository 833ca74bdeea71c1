"""How many images fit into memory together."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from dffg.config import SynthesisConfig
from dffg.errors import ShortageError
from dffg.graph.captured import Captured
from dffg.machine.device import free_bytes

_BYTES = 4


def bytes_per_image(captured: Captured) -> int:
    """Memory that one image of a batch takes in a step, estimated as that of all results of the network.

    A step folds BatchNorm and does not hold its results, but gradients of the layer at hand: measured on
    EfficientNet-Lite0 it takes 66 MB where this says 83.
    """
    values = [node.meta.get("val") for node in captured.module.graph.nodes if node.op == "call_function"]
    numbers = sum(value[0].numel() for value in values if isinstance(value, Tensor) and value.dim() > 1)
    return _BYTES * numbers


def fitting(captured: Captured, config: SynthesisConfig, limit: int | None = None) -> SynthesisConfig:
    """The configuration with its batch halved until a step takes at most `limit` bytes, or what is available.

    Raises `ShortageError` where even one image takes more.
    """
    most = free_bytes(captured.device) if limit is None else limit
    each = bytes_per_image(captured)
    if each > most:
        raise ShortageError(
            f"one image takes about {each / 1e9:.2g} GB of memory in a step, and {most / 1e9:.2g} GB are allowed; "
            "raise --memory-limit, or use smaller images (--input)."
        )
    size = config.batch_size
    while size * each > most:
        size //= 2
    return replace(config, batch_size=size)
