"""ONNX Resize and Upsample, as torch's interpolation where that is the same, else by its own formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dffg.onnx_import.values import Value, axes_of, ints, spatial_axes

_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda position: np.ceil(position - 0.5),
    "round_prefer_ceil": lambda position: np.floor(position + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _resize(
    x: Tensor,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    axes: list[int] | None = None,
) -> Tensor:
    """Source: the ONNX operators' specification, Resize."""
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise NotImplementedError("antialias, exclude_outside and keep_aspect_ratio_policy are not supported")
    resized = axes_of(x, axes)
    factors = _factors(x, resized, scales, sizes)
    if any(factors.get(axis, 1.0) != 1 for axis in (0, 1)):
        raise NotImplementedError("batch and channels cannot be resized")
    new = {axis: _new_size(x.shape[axis], factors.get(axis, 1.0)) for axis in spatial_axes(x)}
    positions = {
        axis: _positions(x.shape[axis], size, factors.get(axis, 1.0), coordinate_transformation_mode)
        for axis, size in new.items()
    }
    if mode == "nearest":
        chosen = {
            axis: np.clip(_ROUNDINGS[nearest_mode](position), 0, x.shape[axis] - 1).astype(np.int64)
            for axis, position in positions.items()
        }
        return _pick(x, chosen)
    if mode == "linear":
        return _interpolate(x, positions)
    raise NotImplementedError(f"{mode} interpolation is not supported")


def _resize_10(x: Tensor, scales: Value | list[float], *, mode: str = "nearest") -> Tensor:
    """As before version 11, and as Upsample."""
    given = scales if isinstance(scales, Tensor) else np.asarray(scales, dtype=np.float32)
    return _resize(x, None, given, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _factors(x: Tensor, axes: tuple[int, ...], scales: Value | None, sizes: Value | None) -> dict[int, float]:
    if sizes is not None and not isinstance(sizes, Tensor) and sizes.size:
        # The size of the batch may be a symbol, which is the same on both sides.
        return {axis: 1.0 if axis == 0 else size / x.shape[axis] for axis, size in zip(axes, ints(sizes))}
    if not isinstance(scales, np.ndarray):
        raise NotImplementedError("a scale depends on the data")
    return {axis: float(scale) for axis, scale in zip(axes, scales.tolist())}


def _new_size(size: int, factor: float) -> int:
    """Scales are stored in few digits: what is whole but for those is whole."""
    exact = size * factor
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-6) else math.floor(exact)


def _positions(old: int, new: int, factor: float, transformation: str) -> NDArray[np.float32]:
    """Where in the old axis every new element lies, in elements; in single precision, which decides ties."""
    index = np.arange(new, dtype=np.float32)
    if transformation == "align_corners":
        return index * np.float32(old - 1) / np.float32(new - 1) if new > 1 else index
    if transformation == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, dtype=np.float32)
    if transformation in ("half_pixel", "pytorch_half_pixel"):
        return (index + np.float32(0.5)) / np.float32(factor) - np.float32(0.5)
    if transformation == "asymmetric":
        return index / np.float32(factor)
    raise NotImplementedError(f"the coordinates {transformation} are not supported")


def _pick(x: Tensor, chosen: dict[int, NDArray[np.int64]]) -> Tensor:
    whole = all(len(indices) % x.shape[axis] == 0 for axis, indices in chosen.items())
    repeated = all(
        np.array_equal(indices, np.arange(len(indices)) * x.shape[axis] // len(indices))
        for axis, indices in chosen.items()
    )
    if whole and repeated and x.dim() <= 5:
        return F.interpolate(x, size=[len(indices) for indices in chosen.values()], mode="nearest")
    for axis, indices in chosen.items():
        x = x.index_select(axis, torch.from_numpy(indices))
    return x


def _interpolate(x: Tensor, positions: dict[int, NDArray[np.float32]]) -> Tensor:
    sizes = {axis: len(position) for axis, position in positions.items()}
    for corners, transformation in ((False, "half_pixel"), (True, "align_corners")):
        same = all(
            np.allclose(position, _positions(x.shape[axis], sizes[axis], sizes[axis] / x.shape[axis], transformation))
            for axis, position in positions.items()
        )
        if same and len(sizes) in _LINEAR:
            return F.interpolate(x, size=list(sizes.values()), mode=_LINEAR[len(sizes)], align_corners=corners)
    for axis, position in positions.items():
        x = _mix_neighbors(x, axis, np.clip(position, 0, x.shape[axis] - 1))
    return x


def _mix_neighbors(x: Tensor, axis: int, position: NDArray[np.float32]) -> Tensor:
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, x.shape[axis] - 1)
    share = torch.from_numpy(position - before.astype(np.float32)).reshape(-1, *[1] * (x.dim() - 1 - axis))
    left, right = (x.index_select(axis, torch.from_numpy(indices)) for indices in (before, after))
    return left + share * (right - left)


RESIZE: dict[str, Callable[..., Any]] = {"Resize": _resize}
RESIZE_BEFORE_11: dict[str, Callable[..., Any]] = {"Resize": _resize_10, "Upsample": _resize_10}
