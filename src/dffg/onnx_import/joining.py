"""Nodes that are one layer together, and what a file says of its batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dffg.onnx_import.layers import group_norm_of_rows
from dffg.onnx_import.steps import Step, reads
from dffg.onnx_import.values import Value


def with_biases(steps: list[Step], constants: dict[str, Value], outputs: set[str]) -> list[Step]:
    """A matrix product and the vector added to it as one layer."""
    readers = _readers(steps)
    joined: dict[str, Step] = {}
    for step in steps:
        product = step.outputs[0]
        if step.operator != "MatMul" or product in outputs or len(readers.get(product, [])) != 1:
            continue
        added = readers[product][0]
        bias = [name for name in added.inputs if name != product]
        if added.operator != "Add" or len(bias) != 1:
            continue
        if _is_bias(constants.get(bias[0]), constants.get(step.inputs[1])):
            joined[added.outputs[0]] = replace(step, inputs=(*step.inputs, bias[0]), outputs=added.outputs)
            joined[product] = step
    return [joined.get(step.outputs[0], step) for step in steps if joined.get(step.outputs[0]) is not step]


def _is_bias(value: Value | None, weight: Value | None) -> bool:
    """Whether a number for every column is added; a longer vector would widen the product."""
    if not isinstance(value, Tensor) or not isinstance(weight, Tensor):
        return False
    return weight.dim() == 2 and value.shape == weight.shape[1:]


def with_free_batch(step: Step, constants: dict[str, Value], batch: int) -> Step:
    """Where a file with a fixed batch reshapes to it, the batch that there is."""
    shape = constants.get(step.inputs[1]) if step.operator == "Reshape" else None
    if not isinstance(shape, np.ndarray) or not shape.size or shape[0] != batch:
        return step
    name = f"{step.inputs[1]} of {step.outputs[0]}"
    constants[name] = np.array([0, *shape[1:]], dtype=np.int64)
    return replace(step, inputs=(step.inputs[0], name), attributes={})


def with_group_norms(steps: list[Step], constants: dict[str, Value], outputs: set[str]) -> list[Step]:
    """Channels laid in rows by their groups, normalized and laid back, as one layer: exporters write GroupNorm so."""
    makers, readers = {step.outputs[0]: step for step in steps}, _readers(steps)
    joined: dict[str, Step | None] = {}
    for step in steps:
        rows, after = makers.get(step.inputs[0]), readers.get(step.outputs[0], [])
        groups = _rows(rows, constants) if step.operator == "InstanceNormalization" else None
        if rows is None or groups is None or not _changes_nothing_else(step, constants) or step.outputs[0] in outputs:
            continue
        if [reader.operator for reader in after] != ["Reshape"]:
            continue
        joined[after[0].outputs[0]] = replace(
            after[0],
            inputs=(rows.inputs[0], after[0].inputs[1]),
            attributes={**after[0].attributes, "groups": groups, "epsilon": step.attributes.get("epsilon", 1e-5)},
            on_tensors=group_norm_of_rows,
            on_numbers=None,
        )
        joined[step.outputs[0]] = None
        if readers[rows.outputs[0]] == [step] and rows.outputs[0] not in outputs:
            joined[rows.outputs[0]] = None
    return [found for step in steps if (found := joined.get(step.outputs[0], step)) is not None]


def _rows(step: Step | None, constants: dict[str, Value]) -> int | None:
    """How many groups of channels a reshape lays in rows, one for each."""
    shape = constants.get(step.inputs[1]) if step is not None and step.operator == "Reshape" else None
    if not isinstance(shape, np.ndarray) or shape.shape != (3,) or shape[0] != 0 or shape[2] != -1:
        return None
    return int(shape[1])


def _changes_nothing_else(norm: Step, constants: dict[str, Value]) -> bool:
    scale, bias = (constants.get(name) for name in norm.inputs[1:3])
    return all(
        isinstance(value, Tensor) and torch.equal(value, torch.full_like(value, usual))
        for value, usual in ((scale, 1), (bias, 0))
    )


def _readers(steps: list[Step]) -> dict[str, list[Step]]:
    readers: dict[str, list[Step]] = {}
    for step, _, name in reads(steps):
        readers.setdefault(name, []).append(step)
    return readers
