"""An ONNX graph as a torch module that `torch.export` can capture."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dffg.errors import CaptureError
from dffg.onnx_import.joining import with_biases, with_free_batch, with_group_norms
from dffg.onnx_import.naming import tensor_path
from dffg.onnx_import.numbers import NUMBER_OPERATORS
from dffg.onnx_import.operators import NUMBER_INPUTS
from dffg.onnx_import.steps import INSTEAD, Step, read_step, reads
from dffg.onnx_import.values import Numbers, Value

_STATISTICS = {"BatchNormalization": (3, 4)}


class OnnxModule(nn.Module):
    """The graph: its tensors are parameters and buffers, and calling it runs the nodes in order.

    What depends on no input is computed when the module is built. batch: size of the batch that the file fixes, if it
    does; reshapes by it then take whatever batch there is.
    """

    def __init__(self, graph: onnx.GraphProto, version: int, batch: int | None = None) -> None:
        super().__init__()
        constants, steps, renamed = _split_constants(graph, version)
        outputs = {output.name for output in graph.output}
        fixed = sorted(outputs & constants.keys())
        if fixed:
            raise CaptureError(f"the output {fixed[0]} depends on no input; leave it out of the file's outputs.")
        steps = with_group_norms(with_biases(steps, constants, outputs), constants, outputs)
        if batch is not None:
            steps = [with_free_batch(step, constants, batch) for step in steps]
        self.input_names = [value.name for value in graph.input if value.name not in constants]
        self._outputs = [output.name for output in graph.output]
        self.steps = steps
        self._numbers: dict[str, Numbers] = {}
        self._paths: dict[str, str] = {}
        for step, index, name in reads(steps):
            if name in constants and name not in self._numbers and name not in self._paths:
                self._keep(name, renamed.get(name, name), constants[name], step, index)

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """The output, or several by their names."""
        values: dict[str, Value] = {**self._numbers, **dict(zip(self.input_names, (x, *more), strict=True))}
        values.update({name: attrgetter(path)(self) for name, path in self._paths.items()})
        for step in self.steps:
            values.update(step.run(values))
        outputs = {name: values[name] for name in self._outputs}
        return outputs[self._outputs[0]] if len(outputs) == 1 else outputs

    def name_of(self, layer: Step) -> str:
        """What reports call a layer: the owner of its weight, else the node."""
        return self._paths.get(layer.inputs[1], "").rpartition(".")[0] or layer.name

    def _keep(self, name: str, shown: str, value: Value, step: Step, index: int) -> None:
        if not isinstance(value, Tensor):
            self._numbers[name] = value
            return
        *scopes, leaf = tensor_path(shown, step.name).split(".")
        owner: nn.Module = self
        for scope in scopes:
            owner = _submodule(owner, scope)
        while hasattr(owner, leaf):
            leaf += "_"
        learned = value.is_floating_point() and index not in _STATISTICS.get(step.operator, ())
        if learned:
            owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        else:
            owner.register_buffer(leaf, value)
        self._paths[name] = ".".join([*self._names(owner), leaf])

    def _names(self, owner: nn.Module) -> list[str]:
        path = next(path for path, module in self.named_modules() if module is owner)
        return path.split(".") if path else []


def _submodule(owner: nn.Module, name: str) -> nn.Module:
    """A part by its name, made where it is new."""
    while not isinstance(getattr(owner, name, None), nn.Module):
        if not hasattr(owner, name):
            owner.add_module(name, nn.Module())
        else:
            name += "_"
    part: nn.Module = getattr(owner, name)
    return part


def _split_constants(graph: onnx.GraphProto, version: int) -> tuple[dict[str, Value], list[Step], dict[str, str]]:
    """What is known before the network runs, the nodes that are left, and the first names of what is only passed on."""
    needed = _needed_as_numbers(graph)
    constants = {
        entry.name: _constant(numpy_helper.to_array(entry), entry.name in needed) for entry in graph.initializer
    }
    steps: list[Step] = []
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(_constant_value(node), node.output[0] in needed)
            continue
        step = read_step(node, index, version)
        if step.operator == "CastLike" and getattr(constants.get(step.inputs[0]), "ndim", None) == 0:
            constants[step.outputs[0]] = constants[step.inputs[0]]  # a number takes the type of what it meets
            continue
        if not all(name in constants for name in step.inputs if name):
            steps.append(step)
            continue
        if step.operator == "Identity":
            renamed[step.outputs[0]] = renamed.get(step.inputs[0], step.inputs[0])
        with torch.no_grad():
            results = step.run(constants)
        constants.update({name: _constant(value, name in needed) for name, value in results.items()})
    return constants, steps, renamed


def _needed_as_numbers(graph: onnx.GraphProto) -> set[str]:
    """What must be known before the network runs although it may be fractions, and what that is computed from."""
    needed: set[str] = set()
    for node in reversed(graph.node):
        all_are = node.op_type in NUMBER_OPERATORS and not needed.isdisjoint(node.output)
        places = range(len(node.input)) if all_are else NUMBER_INPUTS.get(node.op_type, ())
        needed.update(node.input[index] for index in places if index < len(node.input))
    return needed


def _constant(value: Any, is_number: bool) -> Value:
    """Fractions with a shape are data; whole numbers, and fractions without, take part in computing shapes."""
    if isinstance(value, Tensor) or is_number or value.ndim == 0 or value.dtype.kind != "f":
        return value  # type: ignore[no-any-return]
    return torch.from_numpy(np.array(value))


def _constant_value(node: onnx.NodeProto) -> Numbers:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise CaptureError(f"the constant {node.output[0]} holds a {attribute.name}, which is not supported. {INSTEAD}")
    return np.array(value, dtype=kinds[attribute.name])
