"""A transformer for digits, calibrated with images from its patches, noise and real images (docs/models.md)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from benchmarks import records
from benchmarks.digits import SPEC, Digits, DigitsTransformer, train_digits
from benchmarks.networks import OURS, REAL
from benchmarks.rows import latest, spread
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.evaluation.metrics import Accuracy, compare
from dffg.graph.captured import Captured, capture
from dffg.quant.decide import simulate
from dffg.synthesis.synthesize import synthesize_set

SUITE = "patches"
SOURCES = {"patches": OURS, REAL: None, "uniform pixels": "uniform", "normal noise": "noise"}
_IMAGES, _BATCH = 64, 16


def run_suite(seeds: list[int], widths: list[str]) -> None:
    """Measure all sources of calibration; every seed trains a network of its own."""
    for seed in seeds:
        digits = train_digits(seed, DigitsTransformer)
        captured = capture(digits.model, spec=SPEC)
        for bits in widths:
            for source, generator in SOURCES.items():
                measured = asdict(_measure(captured, digits, generator, bits, seed))
                records.append(SUITE, {"bits": bits, "source": source, "seed": seed, **measured})
                print(bits, source, seed, measured, flush=True)


def _measure(captured: Captured, digits: Digits, generator: str | None, bits: str, seed: int) -> Accuracy:
    images = digits.training_images[:_IMAGES]
    if generator is not None:
        images = synthesize_set(captured, SynthesisConfig(count=_IMAGES, generator=generator, seed=seed)).inputs
    batches = torch.split(torch.from_numpy(np.ascontiguousarray(images)), _BATCH)
    module = simulate(captured, batches, QuantizationConfig(bits=bits)).module
    with torch.no_grad():
        answers = [network(torch.from_numpy(digits.images)).numpy() for network in (digits.model, module)]
    return compare(answers[0], answers[1], digits.labels)


def patches_table() -> str:
    """Drop and divergence by widths and source, means and deviations over networks."""
    results = latest(records.read(SUITE), ("bits", "source", "seed"))
    lines = ["| widths | calibration | float top-1 | drop, points | KL to float x 1000 |", "|---|---|---|---|---|"]
    for bits, source in dict.fromkeys((record["bits"], record["source"]) for record in results):
        cell = [record for record in results if (record["bits"], record["source"]) == (bits, source)]
        shown = spread(cell, "float_top1"), spread(cell, "drop_points"), spread(cell, "kl_to_float", 1000)
        lines.append(f"| {bits} | {source} | {' | '.join(shown)} |")
    return "\n".join(lines)
