"""Importing this makes a process, and those forked from it, read torch's translations to ONNX once.

torch reads them anew for every file, which takes half a second of processor time; the tests write hundreds of files.
"""

from __future__ import annotations

import copy
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = cache(ONNXRegistry.from_torchlib)


def _remembered(**options: int) -> ONNXRegistry:
    """What an export adds to its registry stays its own."""
    registry = copy.copy(_read(**options))
    registry.functions = {operator: list(translations) for operator, translations in registry.functions.items()}
    return registry


ONNXRegistry.from_torchlib = staticmethod(_remembered)
