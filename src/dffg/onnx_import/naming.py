"""Names in an ONNX file as paths of a torch module: what a layer is called in reports."""

from __future__ import annotations

import re

from dffg.graph.names import without_keyword

# Names end up in generated Python code: nothing else may remain in them.
_UNUSUAL = re.compile(r"[^A-Za-z0-9_]+")


def tensor_path(name: str, reader: str) -> str:
    """Path under which a stored tensor is kept; the part before the last point is the layer's name.

    The tensor's own name, where it says which layer it belongs to (`features.0.weight`, `block/conv/kernel:0`), else
    the name of the node that reads it.
    """
    pieces = _pieces(name)
    return ".".join(pieces if len(pieces) > 1 else [reader, *pieces])


def node_path(name: str, operator: str, index: int) -> str:
    """The name of a node without what exporters add: `/layer1/layer1.0/conv1/Conv` is `layer1.0.conv1`.

    A scope is left out where the next one repeats it.
    """
    scopes = [scope for scope in name.removeprefix("node_").split("/") if scope]
    if len(scopes) > 1 and re.fullmatch(rf"{operator}(_\d+)?", scopes[-1]):
        scopes.pop()
    kept = [scope for scope, following in zip(scopes, [*scopes[1:], ""]) if not following.startswith(f"{scope}.")]
    return ".".join(_pieces("/".join(kept))) or f"{operator}_{index}"


def _pieces(name: str) -> list[str]:
    cleaned = (_UNUSUAL.sub("_", piece).strip("_") for piece in re.split(r"[./]", name))
    return [without_keyword(piece) for piece in cleaned if piece]
