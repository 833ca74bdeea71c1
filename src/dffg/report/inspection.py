"""What is said of a network before any work."""

from __future__ import annotations

from dataclasses import dataclass

from dffg.spec import ImageSpec


@dataclass(frozen=True, kw_only=True)
class BatchNormSummary:
    """One BatchNorm call: its name, channels, those without variance, and whether it folds into the layer before."""

    name: str
    channels: int
    zero_variance: int
    folds: bool


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `dffg inspect` shows, for ONNX Runtime.

    float_reasons: what keeps each of `float_operations` from integers. estimated_seconds: synthesis of the configured
    images and of the held-out ones.
    """

    model: str
    input: ImageSpec
    parameters: int
    batch_norms: tuple[BatchNormSummary, ...]
    quantized_layers: int
    quantized_tensors: int
    float_operations: tuple[str, ...]
    float_reasons: dict[str, str]
    seconds_per_pass: float
    estimated_seconds: float
    notes: tuple[str, ...]
