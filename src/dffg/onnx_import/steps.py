"""The nodes of an ONNX graph: what each is called, reads, writes and computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from dffg.errors import CaptureError, DffgError, first_line
from dffg.onnx_import.naming import node_path
from dffg.onnx_import.numbers import NUMBER_OPERATORS
from dffg.onnx_import.operators import tensor_operator
from dffg.onnx_import.values import Value, numbers, tensor

INSTEAD = "Export the network without it, or give the PyTorch network itself (package.module:factory, or a .pt2 file)."


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
            raise CaptureError(f"in {self.operator} {self.name}: {error}. {INSTEAD}") from error
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


def reads(steps: list[Step]) -> Iterator[tuple[Step, int, str]]:
    """Every input of every node, with its place."""
    for step in steps:
        for index, name in enumerate(step.inputs):
            yield step, index, name


def read_step(node: onnx.NodeProto, index: int, version: int) -> Step:
    """A node of a file. Raises CaptureError where dffg does not know its operator or an attribute."""
    name = node_path(node.name, node.op_type, index)
    on_tensors, on_numbers = tensor_operator(node.op_type, version), NUMBER_OPERATORS.get(node.op_type)
    if node.domain not in ("", "ai.onnx") or not (on_tensors or on_numbers):
        full = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise CaptureError(f"the operator {full} (node {name}) is not known to dffg. {INSTEAD}")
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
            raise CaptureError(f"the attribute {unknown[0]} of {step.operator} {step.name} is not supported. {INSTEAD}")


def _as_value(result: Any) -> Any:
    return result if isinstance(result, (Tensor, np.ndarray, list)) else numbers(result)
