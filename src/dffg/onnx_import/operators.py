"""Every ONNX operator that dffg knows, by name and version.

An operator is a function of its inputs with its attributes as keywords, named as in the specification. What was an
attribute in one version and is an input in the next is a parameter that both fill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dffg.onnx_import.layers import LAYERS, LAYERS_BEFORE_21
from dffg.onnx_import.pointwise import POINTWISE, POINTWISE_BEFORE_13
from dffg.onnx_import.pooling import POOLING
from dffg.onnx_import.recurrent import RECURRENT
from dffg.onnx_import.resize import RESIZE, RESIZE_BEFORE_11
from dffg.onnx_import.shaping import SHAPING

# From this version on operands broadcast as in NumPy.
OLDEST_VERSION = 7
TENSOR_OPERATORS: dict[str, Callable[..., Any]] = {
    **LAYERS,
    **POINTWISE,
    **POOLING,
    **RECURRENT,
    **RESIZE,
    **SHAPING,
}
_BEFORE: dict[int, dict[str, Callable[..., Any]]] = {
    11: RESIZE_BEFORE_11,
    13: POINTWISE_BEFORE_13,
    21: LAYERS_BEFORE_21,
}

# Inputs that must be known before the network runs although they may be fractions.
NUMBER_INPUTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Dropout": (1, 2),
    "Pad": (2,),
    "Resize": (1, 2),
    "Upsample": (1,),
}


def tensor_operator(name: str, version: int) -> Callable[..., Any] | None:
    """The function of an operator in a version of the standard; None where there is none."""
    for limit, older in _BEFORE.items():
        if version < limit and name in older:
            return older[name]
    return TENSOR_OPERATORS.get(name)
