"""Where a network without BatchNorm has patches that can be compared: its attentions, or else its other normalizations.

What is done with them is in `synthesis/patches.py`.
"""

from __future__ import annotations

import math

from torch import Tensor, fx

from dffg.graph.nodes import aten, calls

_FEWEST_PATCHES = 4
_ATTENTION = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_PASSING = (aten.reshape.default, aten.expand.default, aten.to.dtype)
_CHANNELS_FIRST = (aten.group_norm.default, aten.instance_norm.default)
_CHANNELS_LAST = (aten.layer_norm.default,)


def patch_sources(module: fx.GraphModule) -> list[fx.Node]:
    """The calls whose patches are compared: attentions, or else normalizations of maps; empty where there are none."""
    nodes = [node for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    attentions = [node for node in nodes if _is_attention(node) and _has_patches(node)]
    norms = [node for node in nodes if calls(node, *_CHANNELS_FIRST, *_CHANNELS_LAST) and _has_patches(node)]
    return attentions or norms


def describe(sources: list[fx.Node]) -> str:
    """What a report says of them."""
    what = "attentions" if _is_attention(sources[0]) else "normalization layers"
    return (
        f"experimental: without BatchNorm, images are made from the similarity of patches in {len(sources)} {what} "
        "(PSAQ-ViT), which says less about the training data; compare with real images where there are some"
    )


def compared(source: fx.Node) -> tuple[fx.Node, str]:
    """The node whose result has the patches of a source, and how they lie in it."""
    if _is_attention(source):
        return source, "attention"
    return source.args[0], "channels first" if calls(source, *_CHANNELS_FIRST) else "channels last"  # type: ignore


def _is_attention(node: fx.Node) -> bool:
    if calls(node, _ATTENTION):
        return True
    weights = node.args[0] if calls(node, *_PRODUCTS) else None
    while calls(weights, *_PASSING):
        weights = weights.args[0]  # type: ignore[union-attr]
    return calls(weights, *_SOFTMAX)


def _has_patches(source: fx.Node) -> bool:
    node, kind = compared(source)
    shape = [int(size) for size in node.meta["val"].shape[1:]]
    if len(shape) < 2:
        return False
    count = shape[-2] if kind == "attention" else math.prod(shape[1:] if kind == "channels first" else shape[:-1])
    return count >= _FEWEST_PATCHES
