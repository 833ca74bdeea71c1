"""A transformer for digits, calibrated with images from its patches, noise and real images (docs/models.md)."""

from __future__ import annotations

import statistics

import click
import numpy as np
import torch
from tests.digits import SPEC, Digits, DigitsTransformer, train_digits

from dffg.captured import Captured, capture
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.evaluation.metrics import Accuracy, compare
from dffg.quant.simulate import simulate
from dffg.synthesis import synthesize_set

SOURCES = {"patches": "dffg", "real images": None, "uniform pixels": "uniform", "normal noise": "noise"}
_IMAGES, _BATCH = 64, 16


def run_suite(seeds: list[int], widths: list[str]) -> None:
    """Print the rows of a table: every seed trains a network of its own."""
    found: dict[tuple[str, str], list[Accuracy]] = {(bits, source): [] for bits in widths for source in SOURCES}
    for seed in seeds:
        digits = train_digits(seed, DigitsTransformer)
        captured = capture(digits.model, spec=SPEC)
        for bits, source in found:
            found[bits, source].append(_measure(captured, digits, SOURCES[source], bits, seed))
    for (bits, source), scores in found.items():
        drops, apart = [score.drop_points for score in scores], [1000 * score.kl_to_float for score in scores]
        float_top1 = statistics.mean(score.float_top1 for score in scores)
        click.echo(f"| {bits} | {source} | {float_top1:.2f} % | {_spread(drops)} | {_spread(apart)} |")


def _measure(captured: Captured, digits: Digits, generator: str | None, bits: str, seed: int) -> Accuracy:
    images = digits.training_images[:_IMAGES]
    if generator is not None:
        images = synthesize_set(captured, SynthesisConfig(count=_IMAGES, generator=generator, seed=seed)).inputs
    batches = torch.split(torch.from_numpy(np.ascontiguousarray(images)), _BATCH)
    module = simulate(captured, batches, QuantizationConfig(bits=bits)).module
    with torch.no_grad():
        answers = [network(torch.from_numpy(digits.images)).numpy() for network in (digits.model, module)]
    return compare(answers[0], answers[1], digits.labels)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"
