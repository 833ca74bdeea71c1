"""A report and images to draw, without running a network. Names are as hostile as the tests need them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dffg.config import SynthesisConfig
from dffg.images import SnapshotRecord, SyntheticSet
from dffg.spec import ImageSpec
from tests.report.test_result import RESULT

HOSTILE = "<script>document.title = 'owned'</script>\"'&$x$<img src=x onerror=alert(1)>"
PICTURES = ImageSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6))


def plain_report(**changes: Any) -> dict[str, Any]:
    """A `report.json` as it is read, with 12 layers: the last has no figure, two have more noise than signal."""
    ratios = {5: -3.25, 7: -12.5, 11: None}
    layers = [
        {
            "name": f"blocks.{index}.conv",
            "weight_bits": 8 - index % 3,
            "activation_bits": 8,
            "sqnr_db": ratios.get(index, 40.0 - (7 * index) % 11),
            "input_range": [0.0 - index / 2, 2.5 + index],
        }
        for index in range(12)
    ]
    report: dict[str, Any] = json.loads(RESULT.to_json())
    return report | {"layers": layers, "command": "dffg quantize demo:network --out out"} | changes


def made_set(spec: ImageSpec = PICTURES, chains: int = 2, size: int = 3, **options: Any) -> SyntheticSet:
    """Images whose pixels tell them apart: image i of chain c after s steps has level 50 c + 10 i + s throughout."""
    config = SynthesisConfig(count=chains * size * 2, steps=8, burn_in=6, batch_size=size, **options)
    places = [(chain, step, image) for chain in range(chains) for step in (6, 7) for image in range(size)]
    levels = np.array([50 * chain + 10 * image + step for chain, step, image in places], np.float32)
    low, high = spec.bounds
    pixels = (low + (high - low) / 255 * levels).reshape(-1, *[1] * len(spec.shape)) * np.ones(spec.shape, np.float32)
    return SyntheticSet(
        inputs=spec.normalize(pixels.astype(np.float32)),
        spec=spec,
        config=config,
        snapshots=tuple(
            SnapshotRecord(chain=chain, step=step, loss=1.0, count=size) for chain in range(chains) for step in (6, 7)
        ),
        losses=tuple(tuple(8.0 - step + chain for step in range(8)) for chain in range(chains)),
    )
