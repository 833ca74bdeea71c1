"""A picture of the main idea: images of one chain, from noise to the last step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.networks import load_benchmarks
from dffg.config import SynthesisConfig
from dffg.graph.captured import capture
from dffg.synthesis.chain import run_chain

NETWORK = "efficientnet_lite0"
SHOWN_STEPS = (0, 2, 4, 8, 12, 15)
ROWS, SIZE, GAP = 3, 150, 6


def draw(path: Path) -> None:
    """Run a chain at the defaults and save some of its images, one row each, a column for every shown step."""
    (benchmark,) = load_benchmarks([NETWORK])
    captured = capture(benchmark.model, spec=benchmark.spec)
    columns = [
        captured.spec.to_uint8(visit.images[:ROWS].contiguous().numpy())
        for visit in run_chain(captured, SynthesisConfig(), 0)
        if visit.step in SHOWN_STEPS
    ]
    height, width = (count * (SIZE + GAP) - GAP for count in (ROWS, len(columns)))
    sheet = Image.new("RGB", (width, height), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column):
            tile = Image.fromarray(np.moveaxis(pixels, 0, -1)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * (SIZE + GAP), y * (SIZE + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)
