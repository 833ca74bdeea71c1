"""The float graph with everything in it that is learned, whole or in parts."""

from __future__ import annotations

import math

from torch import Tensor, fx, nn

from dffg.graph.nodes import copy_module, needed, nodes_by_name, weight_of, with_output
from dffg.machine.device import HOST, device_of
from dffg.quant.learned import LearnedActivation, LearnedBias, LearnedWeight, Start
from dffg.quant.parameters import LayerParameters, Parameters
from dffg.quant.placement import clip_bounds, place
from dffg.quant.widths import quantized_layers


class LearnedNetwork:
    """The float graph with learned weights, biases and activations in it; `parameters` reads what was learned.

    start: where the positions of weights begin. drop: see `LearnedActivation`; reach: see `LearnedWeight`.
    An activation that is left to saturation stays in the graph: dropped elements need it.
    """

    def __init__(
        self,
        float_module: fx.GraphModule,
        parameters: Parameters,
        start: Start,
        drop: float = 0.0,
        reach: float = 0.0,
    ) -> None:
        self._start, self._reach, self._target = start, reach, parameters.target
        self.module, parameters = copy_module(float_module), parameters.on(device_of(float_module))
        self.weights: dict[str, LearnedWeight] = {}
        self.biases: dict[str, LearnedBias] = {}
        self.activations: dict[str, LearnedActivation] = {}
        self._values: dict[str, str] = {}
        placement = place(self.module, parameters.target)
        for node in quantized_layers(self.module):
            self._learn_layer(node, parameters.layers[node.name])
        for node, source in placement.source.items():
            if source is node:
                bounds = clip_bounds(node) if node in placement.absorbed else None
                limit = math.inf if bounds is None else bounds[1]
                self._learn_activation(node, LearnedActivation(parameters.activations[node.name], drop, limit))
        self.module.graph.lint()
        self.module.recompile()

    def quantized(self, name: str, value: Tensor) -> Tensor:
        """The value of a node as the quantized network has it."""
        return self.activations[name].eval()(value) if name in self.activations else value

    def block(self, start: str, end: str) -> fx.GraphModule:
        """The part from the (quantized) value of one node to that of another, as a network of its own."""
        return between(self.module, self._value(start), self._value(end))

    def watched(self, names: list[str]) -> fx.GraphModule:
        """The network with the (quantized) values of these nodes as its outputs."""
        nodes = nodes_by_name(self.module)
        return with_output(self.module, [nodes[self._value(name)] for name in names])

    def parameters(self) -> Parameters:
        """What was learned, with every rounding decided, on the CPU."""
        layers = {
            name: LayerParameters(levels=weight.levels(), qparams=weight.qparams(), bias=self._bias(name))
            for name, weight in self.weights.items()
        }
        return Parameters(
            activations={name: module.qparams() for name, module in self.activations.items()},
            layers=layers,
            target=self._target,
        ).on(HOST)

    def state(self) -> dict[str, Tensor]:
        """Everything that is learned, on the CPU."""
        return {name: value.detach().to(HOST, copy=True) for name, value in self.module.named_parameters()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to an earlier `state`."""
        self.module.load_state_dict(state, strict=False)

    def _value(self, name: str) -> str:
        return self._values.get(name, name)

    def _bias(self, name: str) -> Tensor | None:
        return self.biases[name]().detach().clone() if name in self.biases else None

    def _learn_layer(self, node: fx.Node, layer: LayerParameters) -> None:
        weight = weight_of(self.module, node)
        learned = LearnedWeight(self._start(weight, layer), layer.qparams, self._reach)
        self.weights[node.name] = learned
        arguments = list(node.args)
        arguments[1] = self._call(node, f"{node.name}_learned_weight", learned)
        if layer.bias is not None:
            self.biases[node.name] = LearnedBias(layer.bias)
            # The call may leave out a bias of its own, and what is behind it.
            arguments[2:3] = [self._call(node, f"{node.name}_learned_bias", self.biases[node.name])]
        node.args = tuple(arguments)

    def _call(self, node: fx.Node, name: str, learned: nn.Module) -> fx.Node:
        self.module.add_submodule(name, learned)
        with self.module.graph.inserting_before(node):
            return self.module.graph.call_module(name)

    def _learn_activation(self, node: fx.Node, learned: LearnedActivation) -> None:
        self.activations[node.name] = learned
        name = f"{node.name}_learned_activation"
        self.module.add_submodule(name, learned)
        with self.module.graph.inserting_after(node):
            value = self.module.graph.call_module(name, (node,))
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not value)
        self._values[node.name] = value.name


def between(module: fx.GraphModule, start: str, end: str) -> fx.GraphModule:
    """The part of a graph that computes `end` from `start`, which becomes its input; modules are shared."""
    nodes = nodes_by_name(module)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {nodes[start]: graph.placeholder("input")}
    inside = needed(nodes[end], nodes[start])
    for node in module.graph.nodes:
        if node in inside:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(copies[nodes[end]])
    return fx.GraphModule(module, graph)
