"""Give layers of few bits a copy of their own of tensors that something else reads as well.

Along shortcuts a network hands on what all blocks have added up. At the width of the layers that read it, it would be
rounded again behind every block; BRECQ (Li et al., ICLR 2021) and its successors leave it in float and round what
enters a layer. Here it keeps the width of other activations, as integers, and a layer reads a narrower copy.
"""

from __future__ import annotations

from torch import fx

from dffg.config import QuantizationConfig
from dffg.graph.nodes import WEIGHTED, calls, copy_module
from dffg.quant.mixed import fixed_widths
from dffg.quant.operators import COPY
from dffg.quant.placement import Placement, is_fused_padding, keeps_range, place
from dffg.quant.widths import input_tensor, quantized_layers, uniform_widths


def with_narrow_copies(module: fx.GraphModule, config: QuantizationConfig) -> fx.GraphModule:
    """Put a COPY between tensors and the layers that want fewer bits of them than `config.other_bits`.

    module: a prepared graph. Where widths are chosen tensor by tensor, to fit a budget of bit operations, a tensor has
    one for all.
    """
    if config.budget_kind == "bops":
        return module
    narrow = _narrow_layers(module, place(module, config.rules), config)
    if not narrow:
        return module
    module = copy_module(module)
    # Also what shares the range of another, such as the result of max pooling that a convolution and a sum read.
    for tensor in list(place(module, config.rules).source):
        readers = [user for user in tensor.users if _leads_to(user, narrow)]
        if readers and len(readers) < len(tensor.users):
            _insert(module, tensor, readers)
    module.graph.lint()
    module.recompile()
    return module


def _narrow_layers(module: fx.GraphModule, placement: Placement, config: QuantizationConfig) -> set[str]:
    widths = (fixed_widths if config.is_mixed else uniform_widths)(module, placement, config)
    layers = quantized_layers(module)
    return {
        layer.name for layer in layers if widths.activations[input_tensor(layer, placement).name] < config.other_bits
    }


def _leads_to(node: fx.Node, layers: set[str]) -> bool:
    """Whether all that becomes of a tensor behind this node is read by these layers."""
    if calls(node, *WEIGHTED):
        return node.name in layers
    passes = is_fused_padding(node) or keeps_range(node)
    return passes and all(_leads_to(user, layers) for user in node.users)


def _insert(module: fx.GraphModule, tensor: fx.Node, readers: list[fx.Node]) -> None:
    with module.graph.inserting_after(tensor):
        copy = module.graph.create_node("call_function", COPY, (tensor,), name=f"{tensor.name}_narrow")
    copy.meta["val"] = tensor.meta["val"]
    for reader in readers:
        reader.replace_input_with(tensor, copy)
