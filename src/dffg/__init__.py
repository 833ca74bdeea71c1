"""Data-free quantization: from a trained network to a verified file of 8 bits or fewer, without data.

Names are imported when they are first used, so that `import dffg` is cheap and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dffg.config import ArrayConfig, LearningConfig, QuantizationConfig, SynthesisConfig
    from dffg.errors import DffgError
    from dffg.evaluation.data import load_data
    from dffg.graph.captured import Captured, capture
    from dffg.images import SyntheticSet
    from dffg.machine.distributed import ray_workers
    from dffg.models.load import load_model
    from dffg.pipeline.evaluate import evaluate
    from dffg.pipeline.steps import finetune, quantize
    from dffg.quant.decide import simulate
    from dffg.report.result import Result
    from dffg.spec import ImageSpec, JointSpec
    from dffg.synthesis.synthesize import synthesize, synthesize_set

__all__ = [
    "ArrayConfig",
    "Captured",
    "DffgError",
    "ImageSpec",
    "JointSpec",
    "LearningConfig",
    "QuantizationConfig",
    "Result",
    "SynthesisConfig",
    "SyntheticSet",
    "capture",
    "evaluate",
    "finetune",
    "load_data",
    "load_model",
    "quantize",
    "ray_workers",
    "simulate",
    "synthesize",
    "synthesize_set",
]

_HOMES = {
    "graph.captured": ("Captured", "capture"),
    "config": ("ArrayConfig", "LearningConfig", "QuantizationConfig", "SynthesisConfig"),
    "machine.distributed": ("ray_workers",),
    "errors": ("DffgError",),
    "evaluation.data": ("load_data",),
    "images": ("SyntheticSet",),
    "models.load": ("load_model",),
    "pipeline.evaluate": ("evaluate",),
    "pipeline.steps": ("finetune", "quantize"),
    "quant.decide": ("simulate",),
    "report.result": ("Result",),
    "spec": ("ImageSpec", "JointSpec"),
    "synthesis.synthesize": ("synthesize", "synthesize_set"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dffg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dffg.{_HOME_OF[name]}"), name)
