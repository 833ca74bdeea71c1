"""Synthetic images for the page: a few of them, each with what was kept of it on its way."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dffg.images import SnapshotRecord, SyntheticSet
from dffg.spec import Array, JointSpec

ROWS, COLUMNS = 4, 6
# Pictures beyond this side are made smaller, and stored with loss: they are to be looked at.
_SIDE, _QUALITY = 160, 82

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a chain (both from 1): `data:` addresses of its pictures, None where a step was not kept."""

    chain: int
    image: int
    pictures: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images, a row each, and for every column after how many steps."""

    steps: tuple[int, ...]
    rows: tuple[Row, ...]


def drawable(made: SyntheticSet) -> SyntheticSet | None:
    """The set, or of several inputs the first that can be drawn; None where there is none."""
    parts = [made]
    if isinstance(made.spec, JointSpec):
        split = zip(made.spec.inputs, made.spec.split(made.inputs), strict=True)
        parts = [replace(made, spec=spec, inputs=inputs) for spec, inputs in split]
    return next(filter(_is_drawable, parts), None)


def gallery(made: SyntheticSet) -> Gallery:
    """Images of a few chains spread over a set that can be drawn."""
    steps = _spread(sorted({snapshot.step for snapshot in made.snapshots}), COLUMNS)
    chains = _by_chain(made.snapshots)
    shown = _spread(list(chains), ROWS)
    rows = (
        Row(chain=chain + 1, image=image + 1, pictures=tuple(_pictures(made, image, chains[chain], steps)))
        for chain in shown
        for image in range(min(ROWS // len(shown), chains[chain][0][1].count))
    )
    return Gallery(steps=tuple(steps), rows=tuple(rows))


def _is_drawable(made: SyntheticSet) -> bool:
    shape = made.spec.shape
    return len(shape) == 2 or (len(shape) == 3 and (shape[0] == 1 or (made.spec.is_pixels and shape[0] in (3, 4))))


def _by_chain(snapshots: Sequence[SnapshotRecord]) -> dict[int, list[tuple[int, SnapshotRecord]]]:
    """Every kept batch with the place of its first image in the set."""
    chains: dict[int, list[tuple[int, SnapshotRecord]]] = {}
    start = 0
    for snapshot in snapshots:
        chains.setdefault(snapshot.chain, []).append((start, snapshot))
        start += snapshot.count
    return chains


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, from the first to the last."""
    count = min(most, len(items))
    return [items[index * (len(items) - 1) // max(count - 1, 1)] for index in range(count)]


def _pictures(
    made: SyntheticSet, image: int, kept: list[tuple[int, SnapshotRecord]], steps: Sequence[int]
) -> Iterator[str | None]:
    places = {snapshot.step: start + image for start, snapshot in kept if image < snapshot.count}
    for step in steps:
        yield _address(made, made.inputs[places[step]]) if step in places else None


def _address(made: SyntheticSet, inputs: Array) -> str:
    pixels = _levels(made, inputs)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    large = max(picture.size) > _SIDE
    if large:
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    kind = "jpeg" if large and picture.mode != "RGBA" else "png"
    stream = io.BytesIO()
    picture.save(stream, format=kind, quality=_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _levels(made: SyntheticSet, inputs: Array) -> NDArray[np.uint8]:
    """(height, width, channels) from 0, the lower bound, to 255, the upper one."""
    low, high = made.spec.bounds
    share = (made.spec.denormalize(inputs) - low) / (high - low)
    levels = np.clip(np.rint(255 * share), 0, 255).astype(np.uint8)
    return np.moveaxis(levels, 0, -1) if levels.ndim == 3 else levels[..., None]
