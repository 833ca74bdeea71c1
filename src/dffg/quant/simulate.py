"""Build the quantized graph: the float graph with integers written into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, fx

from dffg.captured import Captured
from dffg.config import QuantizationConfig, Scheme
from dffg.fold import fold_batch_norms
from dffg.graph import WEIGHTED, add_tensor, argument, calls, copy_module, layer_name, optional_tensor, stored_tensor
from dffg.quant.affine import QParams, bias_qparams, quantize, weight_qparams, widen_for_bias
from dffg.quant.calibrate import calibrate
from dffg.quant.operators import DEQUANTIZE, QUANTIZE
from dffg.quant.placement import Placement, before_padding, integer_inputs, place, prepare
from dffg.quant.ranges import WEIGHT_RANGES


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One convolution or linear layer: its name for people, its node, and the node that carries its result."""

    name: str
    node: str
    result: str


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One quantized activation: its node in the float graph, and its integers and their value in the quantized one."""

    name: str
    levels: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network with integers in it, executable in torch; `module` holds exactly what is exported.

    float_module: the same network, folded, in float, with the same node names. tensors: in order of execution, one for
    every QUANTIZE call of `module`. float_operations: what is computed in float.
    """

    module: fx.GraphModule
    float_module: fx.GraphModule
    tensors: tuple[QuantizedTensor, ...]
    layers: tuple[QuantizedLayer, ...]
    float_operations: tuple[str, ...]
    scheme: Scheme


def simulate(captured: Captured, images: Iterable[Tensor], config: QuantizationConfig | None = None) -> Quantized:
    """Fold, calibrate with `images` (batches of network inputs) and quantize."""
    config = config or QuantizationConfig()
    float_module = prepare(fold_batch_norms(captured))
    activations = calibrate(float_module, place(float_module), images, captured.spec, config)
    return insert(float_module, activations, config)


def insert(float_module: fx.GraphModule, activations: dict[str, QParams], config: QuantizationConfig) -> Quantized:
    """Write scales, zero points and integer weights into a copy of the graph. `activations`: from `calibrate`."""
    module = copy_module(float_module)
    placement = place(module)
    layers = tuple(_describe(node) for node in module.graph.nodes if calls(node, *WEIGHTED) and integer_inputs(node))
    float_operations = tuple(_describe_operation(node) for node in placement.float_operations)
    for layer in layers:
        _quantize_parameters(module, layer, placement, activations, config)
    inserter = _ActivationInserter(module, activations)
    tensors = tuple(inserter.insert(node, source.name) for node, source in placement.source.items())
    for node in placement.absorbed:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return Quantized(
        module=module,
        float_module=float_module,
        tensors=tensors,
        layers=layers,
        float_operations=float_operations,
        scheme=config.scheme,
    )


def _describe(node: fx.Node) -> QuantizedLayer:
    users = list(node.users)
    result = (
        users[0].name if len(users) == 1 and not integer_inputs(users[0]) and users[0].op != "output" else node.name
    )
    return QuantizedLayer(name=node.meta.get("dffg_name", layer_name(node)), node=node.name, result=result)


def _describe_operation(node: fx.Node) -> str:
    return f"{node.name} ({str(node.target).partition('.')[2].partition('.')[0]})"


class _ActivationInserter:
    """Puts QUANTIZE and DEQUANTIZE behind tensors; tensors with one range share the stored scale."""

    def __init__(self, module: fx.GraphModule, activations: dict[str, QParams]) -> None:
        self._module = module
        self._qparams = activations
        self._stored: dict[str, tuple[fx.Node, fx.Node]] = {}

    def insert(self, node: fx.Node, source: str) -> QuantizedTensor:
        scale, zero_point = self._store(source)
        qparams = self._qparams[source]
        graph = self._module.graph
        with graph.inserting_after(node):
            levels = graph.call_function(QUANTIZE, (node, scale, zero_point, qparams.quant_min, qparams.quant_max))
        with graph.inserting_after(levels):
            value = graph.call_function(DEQUANTIZE, (levels, scale, zero_point))
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not levels)
        return QuantizedTensor(name=node.name, levels=levels.name, value=value.name)

    def _store(self, source: str) -> tuple[fx.Node, fx.Node]:
        if source not in self._stored:
            qparams = self._qparams[source]
            self._stored[source] = (
                add_tensor(self._module, f"{source}_scale", qparams.scale),
                add_tensor(self._module, f"{source}_zero_point", qparams.zero_point),
            )
        return self._stored[source]


def _quantize_parameters(
    module: fx.GraphModule,
    layer: QuantizedLayer,
    placement: Placement,
    activations: dict[str, QParams],
    config: QuantizationConfig,
) -> None:
    node = next(node for node in module.graph.nodes if node.name == layer.node)
    weight = stored_tensor(module, node.args[1])
    bias = optional_tensor(module, argument(node, 2))
    input_scale = activations[placement.source[before_padding(node.args[0])].name].scale
    scale = WEIGHT_RANGES[config.weight_ranges](weight, config.scheme.weight_bits)
    if bias is not None:
        scale = widen_for_bias(scale, input_scale, bias)
    weight_parameters = weight_qparams(scale, config.scheme.weight_bits)
    new_weight = _store_integers(module, f"{layer.node}_weight", weight, weight_parameters, node)
    arguments = [node.args[0], new_weight, *node.args[2:]]
    if bias is not None:
        bias_parameters = bias_qparams(input_scale, weight_parameters.scale)
        arguments[2] = _store_integers(module, f"{layer.node}_bias", bias, bias_parameters, node)
    node.args = tuple(arguments)


def _store_integers(module: fx.GraphModule, name: str, value: Tensor, qparams: QParams, user: fx.Node) -> fx.Node:
    levels = quantize(value.double(), qparams) if qparams.zero_point.element_size() == 4 else quantize(value, qparams)
    stored = add_tensor(module, name, levels.contiguous())
    scale = add_tensor(module, f"{name}_scale", qparams.scale)
    zero_point = add_tensor(module, f"{name}_zero_point", qparams.zero_point)
    with module.graph.inserting_before(user):
        return module.graph.call_function(DEQUANTIZE, (stored, scale, zero_point, qparams.axis))
