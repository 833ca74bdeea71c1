"""An ONNX graph as a torch module that `torch.export` can capture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dffg.errors import CaptureError, DffgError, first_line
from dffg.onnx_import.naming import node_path, tensor_path
from dffg.onnx_import.numbers import NUMBER_OPERATORS
from dffg.onnx_import.operators import NUMBER_INPUTS, tensor_operator
from dffg.onnx_import.values import Numbers, Value, numbers, tensor

_INSTEAD = "Export the network without it, or give the PyTorch network itself (package.module:factory, or a .pt2 file)."
_STATISTICS = {"BatchNormalization": (3, 4)}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node: what it is called, what it reads and writes, and how it computes tensors and numbers."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    on_tensors: Callable[..., Any] | None
    on_numbers: Callable[..., Any] | None

    def run(self, values: dict[str, Value]) -> dict[str, Value]:
        """Compute the outputs. Errors say in which node."""
        given = [values[name] if name else None for name in self.inputs]
        try:
            result = self._function(given)(*given, **self.attributes)
        except DffgError:
            raise
        except NotImplementedError as error:
            raise CaptureError(f"in {self.operator} {self.name}: {error}. {_INSTEAD}") from error
        except Exception as error:
            raise RuntimeError(f"in {self.operator} {self.name}: {first_line(error)}") from error
        results = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.outputs, map(_as_value, results)))

    def _function(self, given: list[Value | None]) -> Callable[..., Any]:
        only_numbers = not any(isinstance(value, (Tensor, list)) for value in given)
        if self.on_numbers is not None and only_numbers:
            return self.on_numbers
        if self.on_tensors is None:
            raise NotImplementedError("it is only known for numbers, not for data")
        if only_numbers and given[0] is not None:
            given[0] = tensor(given[0])
        return self.on_tensors


class OnnxModule(nn.Module):
    """The graph: its tensors are parameters and buffers, and calling it runs the nodes in order.

    What depends on no input is computed when the module is built. batch: size of the batch that the file fixes, if it
    does; reshapes by it then take whatever batch there is.
    """

    def __init__(self, graph: onnx.GraphProto, version: int, batch: int | None = None) -> None:
        super().__init__()
        constants, steps, renamed = _split_constants(graph, version)
        steps = _with_biases(steps, constants, {output.name for output in graph.output})
        if batch is not None:
            steps = [_with_free_batch(step, constants, batch) for step in steps]
        self.input_names = [value.name for value in graph.input if value.name not in constants]
        self._outputs = [output.name for output in graph.output]
        self.steps = steps
        self._numbers: dict[str, Numbers] = {}
        self._paths: dict[str, str] = {}
        for step, index, name in _reads(steps):
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
    needed = {
        node.input[index]
        for node in graph.node
        for index in NUMBER_INPUTS.get(node.op_type, ())
        if index < len(node.input)
    }
    constants = {
        entry.name: _constant(numpy_helper.to_array(entry), entry.name in needed) for entry in graph.initializer
    }
    steps: list[Step] = []
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(_constant_value(node), node.output[0] in needed)
            continue
        step = _read_step(node, index, version)
        if not all(name in constants for name in step.inputs if name):
            steps.append(step)
            continue
        if step.operator == "Identity":
            renamed[step.outputs[0]] = renamed.get(step.inputs[0], step.inputs[0])
        with torch.no_grad():
            results = step.run(constants)
        constants.update({name: _constant(value, name in needed) for name, value in results.items()})
    return constants, steps, renamed


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
        raise CaptureError(
            f"the constant {node.output[0]} holds a {attribute.name}, which is not supported. {_INSTEAD}"
        )
    return np.array(value, dtype=kinds[attribute.name])


def _read_step(node: onnx.NodeProto, index: int, version: int) -> Step:
    name = node_path(node.name, node.op_type, index)
    on_tensors, on_numbers = tensor_operator(node.op_type, version), NUMBER_OPERATORS.get(node.op_type)
    if node.domain not in ("", "ai.onnx") or not (on_tensors or on_numbers):
        full = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise CaptureError(f"the operator {full} (node {name}) is not known to dffg. {_INSTEAD}")
    step = Step(
        name=name,
        operator=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=dict(_attributes(node)),
        on_tensors=on_tensors,
        on_numbers=on_numbers,
    )
    _require_known_attributes(step)
    return step


def _attributes(node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if isinstance(value, float):
            # The decimal number that was meant, which single precision has rounded: an eps of 1e-5 is that again.
            value = float(str(np.float32(value)))
        yield attribute.name, value.decode() if isinstance(value, bytes) else value
    if node.op_type == "Split" and not any(attribute.name == "num_outputs" for attribute in node.attribute):
        yield "num_outputs", len(node.output)


def _require_known_attributes(step: Step) -> None:
    """An attribute that no function takes would change the result silently, or fail far from here."""
    for function in (step.on_tensors, step.on_numbers):
        if isinstance(function, np.ufunc) or function is None or not step.attributes:
            continue
        known = inspect.signature(function).parameters
        unknown = [name for name in step.attributes if name not in known]
        if unknown:
            raise CaptureError(
                f"the attribute {unknown[0]} of {step.operator} {step.name} is not supported. {_INSTEAD}"
            )


def _with_biases(steps: list[Step], constants: dict[str, Value], outputs: set[str]) -> list[Step]:
    """A matrix product and the vector added to it as one layer."""
    readers: dict[str, list[Step]] = {}
    for step, _, name in _reads(steps):
        readers.setdefault(name, []).append(step)
    joined: dict[str, Step] = {}
    for step in steps:
        product = step.outputs[0]
        if step.operator != "MatMul" or product in outputs or len(readers.get(product, [])) != 1:
            continue
        added = readers[product][0]
        bias = [name for name in added.inputs if name != product]
        if added.operator == "Add" and len(bias) == 1 and _is_vector(constants.get(bias[0])):
            joined[added.outputs[0]] = replace(step, inputs=(*step.inputs, bias[0]), outputs=added.outputs)
            joined[product] = step
    return [joined.get(step.outputs[0], step) for step in steps if joined.get(step.outputs[0]) is not step]


def _is_vector(value: Value | None) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _with_free_batch(step: Step, constants: dict[str, Value], batch: int) -> Step:
    """Where a file with a fixed batch reshapes to it, the batch that there is."""
    shape = constants.get(step.inputs[1]) if step.operator == "Reshape" else None
    if not isinstance(shape, np.ndarray) or not shape.size or shape[0] != batch:
        return step
    name = f"{step.inputs[1]} of {step.outputs[0]}"
    constants[name] = np.array([0, *shape[1:]], dtype=np.int64)
    return replace(step, inputs=(step.inputs[0], name), attributes={})


def _reads(steps: list[Step]) -> Iterator[tuple[Step, int, str]]:
    for step in steps:
        for index, name in enumerate(step.inputs):
            yield step, index, name


def _as_value(result: Any) -> Any:
    return result if isinstance(result, (Tensor, np.ndarray, list)) else numbers(result)
