"""What makes the images good? One factor of the iteration at a time, the others at their defaults.

Judged by KL divergence to the float network on real, unlabelled calibration images; evaluation data is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks import cells, records, variants
from benchmarks.exchanged import BATCH, Exchanged, quantizer
from benchmarks.networks import REAL, Benchmark, load_benchmarks
from dffg.config import SynthesisConfig
from dffg.config.synthesis import LEARNING_DEFAULTS
from dffg.evaluation.metrics import kl_divergence
from dffg.graph.captured import Captured
from dffg.machine.distributed import Workers
from dffg.spec import Array
from dffg.synthesis.chain import chain_generator, method_of, run_chain
from dffg.synthesis.synthesize import snapshots

SUITE = "ablation"
BASE = "exact matching"
FAST = "fast formulation"
# At 4 bits with plain ranges only the small residual networks keep their accuracy.
EASY = (("W4A4", "minmax"), ("W4A4", "mse"), ("W8A8", "mse"))
HARD = (("W6A6", "minmax"), ("W6A6", "mse"), ("W8A8", "mse"))
EASY_NETWORKS = ("cifar10_resnet20", "cifar10_resnet56")
JUDGED = {"efficientnet_lite0": 96, "mobilenet_v2": 96}
JUDGED_SMALL = 1024
COUNT = 64


@dataclass(frozen=True, kw_only=True)
class Change:
    """One factor set otherwise: options of the configuration, or a part of the method replaced.

    It is compared with the change named `beside`, from which it differs in that one factor.
    """

    factor: str
    beside: str = BASE
    options: dict[str, Any] = field(default_factory=dict)
    replace: variants.Replace | None = None


CHANGES: dict[str, Change] = {
    BASE: Change(factor="-"),
    **{f"decay {value:g}": Change(factor="momentum", options={"decay": value}) for value in (0.0, 0.5, 0.9, 1.0)},
    "look ahead": Change(factor="momentum", options={"lookahead": True}),
    "raw gradient": Change(factor="sign", replace=variants.with_parts(step=lambda *_: variants.raw_gradient_step)),
    **{f"{name} steps": Change(factor="schedule", options={"schedule": name}) for name in ("linear", "constant")},
    **{f"first step {size:g}": Change(factor="step size", options={"step_size": size}) for size in (1 / 32, 1 / 8)},
    **{f"{steps} steps": Change(factor="steps", options={"steps": steps}) for steps in (4, 8)},
    **{
        f"{steps} steps, keep every {every}": Change(factor="steps", options={"steps": steps, "keep_every": every})
        for steps, every in ((32, 2), (64, 4))
    },
    "keep all of a batch of 4": Change(factor="harvest", options={"burn_in": 0, "batch_size": 4}),
    "keep the second half of a batch of 8": Change(factor="harvest", options={"burn_in": 8, "batch_size": 8}),
    "keep every second of it": Change(factor="harvest", options={"burn_in": 8, "keep_every": 2}),
    "keep the last only": Change(factor="harvest", options={"burn_in": 15}),
    **{f"batch {size}": Change(factor="batch", options={"batch_size": size}) for size in (4, 8)},
    # A larger batch gives 64 images before its chain ends.
    **{
        f"batch {size}, last only": Change(
            factor="batch", beside="keep the last only", options={"batch_size": size, "burn_in": 15}
        )
        for size in (32, 64)
    },
    "per image": Change(factor="statistics", options={"statistics": "image"}),
    # One chain makes all the images at the defaults; these two are about a chain and those before it.
    "running mix": Change(
        factor="statistics",
        beside="keep the last only",
        options={"burn_in": 15},
        replace=variants.with_parts(objective=variants.RunningMix),
    ),
    "channels equal": Change(factor="weighting", replace=variants.with_loss(variants.by_channels)),
    "raw units summed": Change(factor="weighting", replace=variants.with_loss(variants.raw_units)),
    "first layer x 10": Change(factor="weighting", replace=variants.with_loss(variants.first_layer_tenfold)),
    "deviations x 10": Change(factor="weighting", replace=variants.with_loss(variants.deviation_tenfold)),
    **{f"slack {slack:g}": Change(factor="matching", options={"slack": slack}) for slack in (0.05, 0.1, 0.2, 0.4)},
    **{
        f"variability {name}": Change(factor="variability", options={"variability": name})
        for name in ("none", "variance-tuning", "random-mask", "random-scale")
    },
    "one view a batch": Change(factor="variability", replace=variants.with_parts(vary=lambda *_: variants.shared_view)),
    "random layer weights": Change(
        factor="variability",
        options={"variability": "none"},
        replace=variants.with_parts(objective=variants.RandomLayerWeights),
    ),
    "gradients apart": Change(factor="variability", replace=variants.with_parts(vary=lambda *_: variants.apart)),
    "views at full strength": Change(factor="variability", options={"variability_strength": 1.0}),
    "gradient blurred": Change(
        factor="low-pass", replace=variants.with_parts(vary=lambda *_: variants.blurred_gradient)
    ),
    "image blurred": Change(
        factor="low-pass", replace=variants.with_parts(step=lambda *_: variants.blurred_image_step)
    ),
    "blurred noise": Change(factor="start", replace=variants.with_parts(start=lambda *_: variants.blurred_start)),
    "earlier image": Change(
        factor="start", beside="keep the last only", options={"burn_in": 15}, replace=variants.earlier_image
    ),
    "pictures": Change(factor="start", options={"start": "pictures"}),
    "slack 0.2, pictures": Change(factor="start", beside="slack 0.2", options={"start": "pictures", "slack": 0.2}),
    "as for learning": Change(
        factor="together",
        options={name: value for group in LEARNING_DEFAULTS for name, value in group.items()},
    ),
    **{f"noise of {std:g}": Change(factor="start", options={"start_std": std}) for std in (0.02, 0.1, 0.5)},
    "raw gradient, noise of 0.1": Change(
        factor="together",
        options={"start_std": 0.1},
        replace=variants.with_parts(step=lambda *_: variants.raw_gradient_step),
    ),
    "decay 0.5, noise of 0.1": Change(factor="together", options={"start_std": 0.1, "decay": 0.5}),
    "decay 0, noise of 0.1": Change(factor="together", options={"start_std": 0.1, "decay": 0.0}),
    "slack 0.2, noise of 0.1": Change(factor="together", options={"start_std": 0.1, "slack": 0.2}),
    # Measured when ranges were already sought as they are now, as the formulations below.
    "slack 0.2, no variability": Change(factor="together", beside=FAST, options={"variability": "none", "slack": 0.2}),
    "batch 8, noise of 0.1": Change(factor="together", options={"start_std": 0.1, "batch_size": 8}),
    "constant steps, noise of 0.1": Change(factor="together", options={"start_std": 0.1, "schedule": "constant"}),
    "raw gradient, slack 0.2": Change(
        factor="together",
        options={"slack": 0.2},
        replace=variants.with_parts(step=lambda *_: variants.raw_gradient_step),
    ),
    "half size first": Change(factor="resolution", replace=variants.with_parts(vary=variants.HalfResolutionFirst)),
    # The loss that synthesis runs, slack included, measured again: ranges are sought otherwise than for the rows above.
    FAST: Change(factor="formulation", beside=FAST, options={"slack": 0.2}),
    "plain formulation": Change(
        factor="formulation",
        beside=FAST,
        options={"slack": 0.2},
        replace=variants.with_parts(objective=variants.plain_formulation),
    ),
    **{
        f"every second place of maps above {size}x{size}": Change(
            factor="sampling",
            beside=FAST,
            options={"slack": 0.2},
            replace=variants.with_parts(objective=variants.sampled_statistics(size**2)),
        )
        for size in (10, 28)
    },
}
# Of features nothing is flipped or rolled, and no map of keyword spotting is that large.
PICTURES_ONLY = (
    "one view a batch",
    "views at full strength",
    "gradient blurred",
    "image blurred",
    "half size first",
    "every second place of maps above 28x28",
)


def make_images(captured: Captured, config: SynthesisConfig, change: Change) -> Array:
    """As `synthesize_set`, with parts of the method replaced."""
    method = method_of(captured, config)
    if change.replace is not None:
        method = change.replace(method, captured, config)
    kept = snapshots(captured, config, run_chain=lambda chain: run_chain(captured, config, chain, method))
    return torch.cat([snapshot.images for snapshot in kept]).numpy()


class Judge:
    """What images do to a network: KL divergence from the float network on unlabelled calibration images."""

    def __init__(self, exchanged: Exchanged, benchmark: Benchmark) -> None:
        self._exchanged = exchanged
        judged = benchmark.calibration.first(JUDGED.get(benchmark.name, JUDGED_SMALL))
        self._inputs = list(judged.batches(BATCH))
        self._expected = exchanged.float_answer(self._inputs)

    def divergences(self, images: Array) -> dict[str, float]:
        """KL divergence by quantizer, where `images` calibrate."""
        histograms = self._exchanged.observe(images)
        return {
            f"{bits} {ranges}": float(
                np.mean(
                    kl_divergence(
                        self._expected, self._exchanged.answer(histograms, quantizer(bits, ranges), self._inputs)
                    )
                )
            )
            for bits, ranges in (EASY if self._exchanged.name in EASY_NETWORKS else HARD)
        }


def run_suite(networks: list[str], seeds: list[int], changes: list[str], workers: Workers | None = None) -> None:
    """Measure every change on every network, and append what is not yet in the results."""
    done = {_key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        names = [name for name in (REAL, "noise", *changes) if takes_part(name, benchmark)]
        items = [(name, seed) for seed in seeds for name in names]
        wanted = [item for item in items if _key(_describe(benchmark, *item)) not in done]
        cells.measure(SUITE, _measured, wanted, prepare=_prepared, shared=benchmark, show=_summary, workers=workers)


def takes_part(name: str, benchmark: Benchmark) -> bool:
    """Whether a change means something for the inputs of a network."""
    return name not in PICTURES_ONLY or benchmark.spec.is_pixels


def _prepared(benchmark: Benchmark) -> tuple[Benchmark, Exchanged, Judge]:
    exchanged = Exchanged(benchmark)
    return benchmark, exchanged, Judge(exchanged, benchmark)


def _measured(prepared: tuple[Benchmark, Exchanged, Judge], item: tuple[str, int]) -> Iterator[dict[str, Any]]:
    benchmark, exchanged, judge = prepared
    kl = judge.divergences(_images(benchmark, exchanged.captured, *item))
    yield {**_describe(benchmark, *item), "kl": kl}


def _summary(row: dict[str, Any]) -> str:
    kl = {key: round(value * 1000, 2) for key, value in row["kl"].items()}
    return f"{row['network']} {row['change']} {row['seed']} {kl}"


def _describe(benchmark: Benchmark, name: str, seed: int) -> dict[str, Any]:
    change = CHANGES.get(name)
    config = asdict(config_of(change, seed)) if change else {}
    factor = change.factor if change else "yardstick"
    return {"network": benchmark.name, "change": name, "factor": factor, "seed": seed, "config": config}


def _key(record: dict[str, Any]) -> str:
    return repr([record[name] for name in ("network", "change", "seed", "config")])


def config_of(change: Change, seed: int) -> SynthesisConfig:
    """Around the exact loss: slack is the last default that was chosen, from this very table."""
    return SynthesisConfig(count=COUNT, seed=seed, **{"slack": 0.0, **change.options})


def _images(benchmark: Benchmark, captured: Captured, name: str, seed: int) -> Array:
    if name == REAL:
        return benchmark.real_images(COUNT, seed)
    if name == "noise":
        return torch.randn(COUNT, *captured.spec.shape, generator=chain_generator(seed, 0)).numpy()
    return make_images(captured, config_of(CHANGES[name], seed), CHANGES[name])
