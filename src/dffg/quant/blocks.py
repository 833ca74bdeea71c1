"""Parts of a network that one tensor enters and one tensor leaves: what can be reconstructed on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from dffg.graph.nodes import (
    CONVOLUTIONS,
    calls,
    gives_floats,
    groups_of,
    is_depthwise,
    needed,
    nodes_by_name,
    weight_of,
)
from dffg.quant.widths import quantized_layers


@dataclass(frozen=True, kw_only=True)
class Block:
    """input, output: nodes; the block is what lies between, without the former. layers: its quantized layers."""

    input: str
    output: str
    layers: tuple[str, ...]


def find_blocks(module: fx.GraphModule) -> tuple[Block, ...]:
    """Residual blocks, inverted residuals and single layers, in order of execution, found by the edges of the graph.

    A node through which everything passes, as one tensor of floats, is a place to cut; between two such nodes lies a
    layer, or everything that a shortcut spans. What has no layer joins the block before; but pooling of whole maps
    joins the next, because a block would else learn from one number for every channel of an image, and fit that with
    far too many weights. A depthwise convolution is joined with the pointwise ones around it: alone it has too little
    to learn, and the tensors beside it are the widest of the network.
    """
    regions = _regions(module)
    merged: list[list[Block]] = []
    while regions:
        taken = _take(module, regions)
        merged.append(regions[:taken])
        regions = regions[taken:]
    return tuple(_join(part) for part in merged)


def joined(blocks: tuple[Block, ...], together: int) -> tuple[Block, ...]:
    """So many consecutive blocks as one, and what is left at the end as a smaller one."""
    parts = [blocks[start : start + together] for start in range(0, len(blocks), together)]
    return tuple(_join(part) for part in parts)


def _join(part: Sequence[Block]) -> Block:
    layers = tuple(layer for block in part for layer in block.layers)
    return Block(input=part[0].input, output=part[-1].output, layers=layers)


def work_of(module: fx.GraphModule, block: Block) -> int:
    """Elements that a block computes for one image: what a step of learning takes is nearly proportional to it."""
    nodes = nodes_by_name(module)
    inside = needed(nodes[block.output], nodes[block.input])
    shapes = [node.meta["val"].shape[1:] for node in inside if isinstance(node.meta.get("val"), Tensor)]
    # A recurrence begins with zeros of (layers, batch, features), and the batch has no number.
    return sum(math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)


def _regions(module: fx.GraphModule) -> list[Block]:
    """Blocks before any are merged: what lies between two cuts."""
    layers, nodes = {node.name for node in quantized_layers(module)}, nodes_by_name(module)
    regions: list[Block] = []
    start, end, inside = "", "", []
    for node, is_cut in _cuts(module):
        if node.op == "placeholder":
            start = node.name
            continue
        inside += [node.name] if node.name in layers else []
        if not is_cut:
            continue
        end = node.name
        if inside:
            regions.append(Block(input=start, output=end, layers=tuple(inside)))
        # What comes before the first layer is computed together with it.
        elif not regions or _positions(nodes[start]) > _positions(node) == 1:
            continue
        else:
            regions[-1] = replace(regions[-1], output=end)
        start, inside = end, []
    if regions:
        regions[-1] = replace(regions[-1], output=end)
    return regions


def _positions(node: fx.Node) -> int:
    """Places in the map of one channel."""
    return math.prod(node.meta["val"].shape[2:])


def _cuts(module: fx.GraphModule) -> list[tuple[fx.Node, bool]]:
    """Every computing node, with whether each edge that passes it starts at it and it can be learned from."""
    nodes = [node for node in module.graph.nodes if node.op not in ("get_attr", "output")]
    position = {node: index for index, node in enumerate(nodes)}
    furthest, found = -1, []
    for index, node in enumerate(nodes):
        found.append((node, furthest <= index and gives_floats(node)))
        furthest = max([furthest, *(position.get(user, len(nodes)) for user in node.users)])
    return found


def _take(module: fx.GraphModule, regions: list[Block]) -> int:
    """How many regions make the next block."""
    start = 1 if _is_pointwise(module, regions[0]) else 0
    if start >= len(regions) or not _is_depthwise(module, regions[start]):
        return 1
    end = start + 1
    while end < len(regions) and not _is_pointwise(module, regions[end]):
        end += 1
    return end + 1 if end < len(regions) else start + 1


def _is_depthwise(module: fx.GraphModule, region: Block) -> bool:
    layer = _only_convolution(module, region)
    return layer is not None and is_depthwise(module, layer)


def _is_pointwise(module: fx.GraphModule, region: Block) -> bool:
    layer = _only_convolution(module, region)
    return layer is not None and groups_of(layer) == 1 and set(weight_of(module, layer).shape[2:]) == {1}


def _only_convolution(module: fx.GraphModule, region: Block) -> fx.Node | None:
    """The convolution that a region is, if it has one layer and that is one."""
    node = nodes_by_name(module)[region.layers[0]]
    return node if len(region.layers) == 1 and calls(node, *CONVOLUTIONS) else None
