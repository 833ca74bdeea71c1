"""What every process of the tests would do again and again, done once.

torch reads its translations to ONNX anew for every file, which takes half a second of processor time: importing this
makes them be read once a process. The first capture and the first file of a process take seconds: `warm_up` makes them
before others are forked. The tests write hundreds of files, many of them in processes of their own.
"""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import suppress
from functools import cache

import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = cache(ONNXRegistry.from_torchlib)


def _remembered(**options: int) -> ONNXRegistry:
    """What an export adds to its registry stays its own."""
    registry = copy.copy(_read(**options))
    registry.functions = {operator: list(translations) for operator, translations in registry.functions.items()}
    return registry


ONNXRegistry.from_torchlib = staticmethod(_remembered)


def warm_up() -> None:
    """Capture a network and write it, before processes are forked from this one; leaves no thread."""
    with suppress(ModuleNotFoundError):
        import tqdm

        tqdm.tqdm.monitor_interval = 0
    example = (torch.zeros(2, 3, 4, 4),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(nn.Conv2d(3, 2, 3), example)
        torch.onnx.export(program, (), io.BytesIO(), dynamo=True, verbose=False)
