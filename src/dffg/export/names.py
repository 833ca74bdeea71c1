"""Names in an ONNX file: each stands for one value only."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import onnx_ir


def make_unique_(graph: onnx_ir.Graph, first: Iterable[onnx_ir.Value] = ()) -> None:
    """Give every value whose name is taken one of its own: the name with a number behind it.

    Networks may return something under the name of an input, or of one of their own operators. Names are kept by what
    others find by them: the values `first`, inputs, outputs, and then all else.
    """
    inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    values = dict.fromkeys(value for value in (*first, *graph.inputs, *graph.outputs, *inner) if value.name)
    known = {value.name for value in values}
    taken: set[str | None] = set()
    for value in values:
        if value.name in taken:
            value.name = next(name for index in count(1) if (name := f"{value.name}_{index}") not in known)
            known.add(value.name)
        taken.add(value.name)
