"""Which settings should be the defaults? One factor at a time.

Judged by KL divergence to the float network on the real, unlabelled calibration images; evaluation data is not touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks import records
from benchmarks.networks import Benchmark, load_benchmarks
from dffg.captured import Captured, capture
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.evaluation.metrics import kl_divergence
from dffg.fold import fold_batch_norms
from dffg.images import Array
from dffg.quant.calibrate import choose_ranges, observe, observed_tensors
from dffg.quant.placement import place, prepare
from dffg.quant.simulate import insert
from dffg.synthesis import synthesize_set

SUITE = "defaults"
NOISE: dict[str, Any] = {"steps": 1}
CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "variability none": {"variability": "none"},
    "variability random-mask": {"variability": "random-mask"},
    "variability random-scale": {"variability": "random-scale"},
    "variability variance-tuning": {"variability": "variance-tuning"},
    "statistics image": {"statistics": "image"},
    "steps 8": {"steps": 8},
    "steps 32": {"steps": 32},
    "decay 0": {"decay": 0.0},
    "decay 0.5": {"decay": 0.5},
    "decay 0.9": {"decay": 0.9},
    "noise": NOISE,
}
QUANTIZERS = {
    f"{bits} {ranges}": QuantizationConfig(bits=bits, activation_ranges=ranges)
    for bits in ("W8A8", "W6A6")
    for ranges in ("minmax", "percentile", "mse")
}
JUDGED_IMAGES = 96


def run(networks: list[str], seeds: list[int], changes: list[str]) -> None:
    """Measure every change on every network, and append the results."""
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        judge = benchmark.calibration.first(JUDGED_IMAGES if "cifar" not in benchmark.name else 1024)
        judged = np.concatenate(list(judge.batches()))
        for seed in seeds:
            _measure(benchmark, captured, "real images", benchmark.real_images(64, seed), judged, seed)
            for change in changes:
                made = synthesize_set(captured, SynthesisConfig(seed=seed, **CHANGES[change]))
                _measure(benchmark, captured, change, made.inputs, judged, seed)


def _measure(benchmark: Benchmark, captured: Captured, change: str, images: Array, judged: Array, seed: int) -> None:
    module = prepare(fold_batch_norms(captured))
    placement = place(module)
    histograms = observe(module, observed_tensors(placement), torch.split(torch.from_numpy(images), 16))
    batches = torch.split(torch.from_numpy(judged), 32)
    with torch.no_grad():
        expected = np.concatenate([module(batch).numpy() for batch in batches])
        for name, config in QUANTIZERS.items():
            quantized = insert(module, choose_ranges(histograms, placement, captured.spec, config), config)
            answer = np.concatenate([quantized.module(batch).numpy() for batch in batches])
            kl = float(kl_divergence(expected, answer).mean())
            record = {"network": benchmark.name, "images": change, "quantizer": name, "seed": seed, "kl": kl}
            records.append(SUITE, record)
            print(record, flush=True)
