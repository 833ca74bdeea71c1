"""Everything that quantization decided, as a file of plain arrays: to look at, and to go on from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from dffg.errors import InputError, first_line
from dffg.graph.nodes import nodes_by_name, weight_of
from dffg.images import read_npz
from dffg.quant.affine import QParams
from dffg.quant.parameters import LayerParameters, Parameters
from dffg.quant.placement import place
from dffg.quant.widths import quantized_layers
from dffg.targets import ONNXRUNTIME, Target

_LAYER, _ACTIVATION = "layer", "activation"
_BYTES = (torch.int8, torch.uint8)


def save_parameters(parameters: Parameters, path: Path) -> None:
    """Write `tensors_of` them."""
    np.savez_compressed(path, **{key: tensor.numpy() for key, tensor in tensors_of(parameters).items()})  # type: ignore[arg-type]


def tensors_of(parameters: Parameters) -> dict[str, Tensor]:
    """`layer/NAME/levels`, `scale`, `zero_point`, `limits` and `bias`, and `activation/NAME/scale` and so on.

    Names are nodes of the graph; limits are the lowest and the highest integer in use.
    """
    arrays: dict[str, Tensor] = {}
    for name, layer in parameters.layers.items():
        arrays[f"{_LAYER}/{name}/levels"] = layer.levels.contiguous()
        arrays |= _of_qparams(f"{_LAYER}/{name}", layer.qparams)
        if layer.bias is not None:
            arrays[f"{_LAYER}/{name}/bias"] = layer.bias
    for name, qparams in parameters.activations.items():
        arrays |= _of_qparams(f"{_ACTIVATION}/{name}", qparams)
    return arrays


def load_parameters(path: Path, module: fx.GraphModule, target: Target = ONNXRUNTIME) -> Parameters:
    """Read what `save_parameters` wrote of this (float) network for this runtime.

    Raises InputError where the file cannot be read or is of another network.
    """
    try:
        stored = {key: torch.from_numpy(array) for key, array in read_npz(path).items()}
        parameters = Parameters(
            activations={name: _to_qparams(part) for name, part in _parts(stored, _ACTIVATION).items()},
            layers={name: _to_layer(part) for name, part in _parts(stored, _LAYER).items()},
            target=target,
        )
    except InputError as error:
        raise InputError(f"cannot read what was decided: {error}; quantize the network again.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(
            f"cannot read {path}: its arrays are not those that quantize writes ({reason}); quantize the network again."
        ) from error
    if any((qparams.zero_point.dtype == torch.int8) != target.signed for qparams in parameters.activations.values()):
        wanted = "signed" if target.signed else "unsigned"
        raise InputError(
            f"{path} has other integers than {target.name} takes, which are {wanted}; quantize the network for it "
            f"(--target {target.name}), and go on from there."
        )
    if not _fits(parameters, module):
        raise InputError(f"{path} is of another network, or of the same with other options; give the one it came from.")
    return parameters


def _of_qparams(prefix: str, qparams: QParams) -> dict[str, Tensor]:
    limits = torch.tensor([qparams.quant_min, qparams.quant_max])
    return {
        f"{prefix}/scale": qparams.scale,
        f"{prefix}/zero_point": qparams.zero_point,
        f"{prefix}/limits": limits,
    }


def _parts(stored: dict[str, Tensor], kind: str) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        found, name, entry = key.split("/")
        if found == kind:
            parts.setdefault(name, {})[entry] = value
    return parts


def _to_qparams(part: dict[str, Tensor]) -> QParams:
    scale, zero_point, (low, high) = part["scale"], part["zero_point"], part["limits"].tolist()
    _require(_are_finite(scale) and bool((scale > 0).all()), "a scale that is no positive number")
    _require(
        zero_point.shape == scale.shape and zero_point.dtype in _BYTES,
        "no integer as a zero point for every scale",
    )
    _require(isinstance(low, int) and isinstance(high, int) and low < high, "limits that are no two integers")
    axis = 0 if scale.dim() else None
    return QParams(scale=scale, zero_point=zero_point, quant_min=low, quant_max=high, axis=axis)


def _to_layer(part: dict[str, Tensor]) -> LayerParameters:
    levels, qparams, bias = part["levels"], _to_qparams(part), part.get("bias")
    low, high, outputs = qparams.quant_min, qparams.quant_max, levels.shape[:1]
    fit = levels.dtype in _BYTES and bool(((levels >= low) & (levels <= high)).all())
    _require(fit, "integers out of range")
    _require(qparams.scale.shape == outputs, "no scale for every output")
    _require(bias is None or (bias.shape == outputs and _are_finite(bias)), "no bias for every output")
    return LayerParameters(levels=levels, qparams=qparams, bias=bias)


def _are_finite(values: Tensor) -> bool:
    return values.is_floating_point() and bool(values.isfinite().all())


def _require(condition: bool, else_has: str) -> None:
    if not condition:
        raise ValueError(else_has)


def _fits(parameters: Parameters, module: fx.GraphModule) -> bool:
    nodes, layers = nodes_by_name(module), [layer.name for layer in quantized_layers(module)]
    sources = {source.name for source in place(module, parameters.target).source.values()}
    if parameters.layers.keys() != set(layers) or parameters.activations.keys() != sources:
        return False
    weights = {name: weight_of(module, nodes[name]) for name in layers}
    return all(parameters.layers[name].levels.shape == weight.shape for name, weight in weights.items())
