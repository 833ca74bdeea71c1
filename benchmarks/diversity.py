"""How different are the images, and does it matter? Measured beside real images, not asserted.

Judged like the ablation, on unlabelled calibration images; evaluation data is not touched.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from benchmarks import ablation, cells, records
from benchmarks.ablation_tables import log_kl, log_ratios
from benchmarks.exchanged import BATCH, Exchanged
from benchmarks.networks import REAL, Benchmark, load_benchmarks
from benchmarks.rows import Records, latest, ratio, unique
from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.graph.nodes import WEIGHTED, calls, with_output
from dffg.machine.distributed import Workers
from dffg.spec import Array
from dffg.synthesis.chain import Visit, method_of, run_chain
from dffg.synthesis.probe import Probe
from dffg.synthesis.synthesize import snapshots
from dffg.synthesis.variability import GradientAt, Variability, VariabilityOptions

SUITE = "diversity"
COUNT = 64
DEFAULTS = "defaults"
CHANGES = (
    "variability none",
    "variability variance-tuning",
    "variability random-mask",
    "variability random-scale",
    "one view a batch",
    "random layer weights",
    "gradients apart",
    "per image",
    "keep the last only",
    "batch 4",
    "decay 0",
    "decay 1",
)
RIVALS = {
    "zeroq steps 64": {"generator": "zeroq", "steps": 64},
    "dgh steps 64": {"generator": "dgh", "steps": 64},
    "noise": {"generator": "noise"},
}
OF_OURS = (DEFAULTS, *CHANGES)
SETTINGS = (REAL, *RIVALS, *OF_OURS)
FIGURES = {
    "feature_distance": "distance of features",
    "statistics_spread": "spread of statistics, of real",
    "near_duplicates": "near duplicates in a chain",
    "gradient_correlation": "gradients of two images",
    "gradient_persistence": "gradients of two steps",
}
FEWEST_TO_RANK = 5
# Two images are near duplicates where their features are closer than those of the closest hundredth of real pairs.
DUPLICATE_QUANTILE = 0.01


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images (count, ...), the chain and the place in its batch of every one, and the gradients of every step."""

    inputs: Array
    steps: int = 0
    chains: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


def run_suite(networks: list[str], seeds: list[int], settings: Sequence[str], workers: Workers | None = None) -> None:
    """Measure these settings on every network, and append what is not yet in the results."""
    done = {_key(record) for record in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        names = [name for name in settings if ablation.takes_part(name, benchmark)]
        items = [(name, seed) for seed, name in itertools.product(seeds, names)]
        wanted = [item for item in items if _key(_describe(benchmark, *item)) not in done]
        cells.measure(SUITE, _measured, wanted, prepare=_Instruments, shared=benchmark, show=_summary, workers=workers)


class _Instruments:
    """A network with what measures its images."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.exchanged = Exchanged(benchmark)
        self.judge = ablation.Judge(self.exchanged, benchmark)
        self.meter = Meter(self.exchanged.captured, benchmark.real_images(COUNT, 0))


def _measured(instruments: _Instruments, item: tuple[str, int]) -> Iterator[dict[str, Any]]:
    made = make(instruments.benchmark, instruments.exchanged.captured, *item)
    found = {**instruments.meter.measure(made), "kl": instruments.judge.divergences(made.inputs)}
    yield {**_describe(instruments.benchmark, *item), **found}


def _describe(benchmark: Benchmark, name: str, seed: int) -> dict[str, Any]:
    return {"network": benchmark.name, "setting": name, "seed": seed, "config": _config(name, seed)}


def _summary(row: dict[str, Any]) -> str:
    return str({key: value for key, value in row.items() if key != "config"})


def _key(record: dict[str, Any]) -> str:
    return repr([record[name] for name in ("network", "setting", "seed", "config")])


def _config(name: str, seed: int) -> dict[str, Any]:
    return {} if name == REAL else asdict(_synthesis(name, seed))


def _synthesis(name: str, seed: int) -> SynthesisConfig:
    options = {} if name == DEFAULTS else RIVALS[name] if name in RIVALS else ablation.CHANGES[name].options
    return SynthesisConfig(count=COUNT, seed=seed, **options)  # type: ignore[arg-type]


def make(benchmark: Benchmark, captured: Captured, name: str, seed: int) -> Made:
    """Images of one setting with where they come from."""
    if name == REAL:
        return Made(inputs=benchmark.real_images(COUNT, seed))
    config = _synthesis(name, seed)
    gradients: list[Tensor] = []
    kept = list(snapshots(captured, config, run_chain=_watched(captured, config, name, gradients)))
    return Made(
        inputs=torch.cat([snapshot.images for snapshot in kept]).numpy(),
        chains=[snapshot.chain for snapshot in kept for _ in snapshot.images],
        steps=config.steps,
        places=[place for snapshot in kept for place in range(len(snapshot.images))],
        gradients=gradients,
    )


def _watched(
    captured: Captured, config: SynthesisConfig, name: str, gradients: list[Tensor]
) -> Callable[[int], Iterator[Visit]] | None:
    """The chains of a fast gradient setting, whose gradients are noted; None for other generators."""
    if not config.is_fast_gradient:
        return None
    method = method_of(captured, config)
    change = ablation.CHANGES.get(name)
    if change is not None and change.replace is not None:
        method = change.replace(method, captured, config)
    method = replace(method, vary=_noting(method.vary, gradients))
    return lambda chain: run_chain(captured, config, chain, method)


def _noting(vary: Variability, gradients: list[Tensor]) -> Variability:
    def noted(
        gradient_at: GradientAt, images: Tensor, variance: Tensor, options: VariabilityOptions
    ) -> tuple[float, Tensor, Tensor]:
        loss, gradient, variance = vary(gradient_at, images, variance, options)
        gradients.append(gradient.detach().clone())
        return loss, gradient, variance

    return noted


class Meter:
    """Diversity of images as a network sees them."""

    def __init__(self, captured: Captured, real: Array) -> None:
        self._features = features_of(captured)
        self._probe = Probe(captured)
        distances = pairwise_distances(self._in_batches(real, self._features))
        self._duplicate = float(torch.quantile(distances, DUPLICATE_QUANTILE))

    def measure(self, made: Made) -> dict[str, float | None]:
        """All figures of one set of images; None where a figure has no meaning for it."""
        features = self._in_batches(made.inputs, self._features)
        return {
            "feature_distance": float(pairwise_distances(features).mean()),
            "statistics_spread": float(self._in_batches(made.inputs, self._spread_terms).std(0).mean()),
            "near_duplicates": self._near_duplicates(features, made),
            "gradient_correlation": between_images(made.gradients),
            "gradient_persistence": between_steps(made.gradients, made.steps),
        }

    def _spread_terms(self, images: Tensor) -> Tensor:
        """Mean of every channel of every layer, in units of what BatchNorm remembers: (batch, channels)."""
        return torch.cat(
            [layer.mean_error for layer in self._probe(images, per_image=True) if layer.mean_error.dim() == 2], dim=1
        )

    def _near_duplicates(self, features: Tensor, made: Made) -> float | None:
        """Share of near duplicates among the pairs of snapshots of one image in one chain."""
        pairs = [
            (first, second)
            for first, second in itertools.combinations(range(len(made.chains)), 2)
            if (made.chains[first], made.places[first]) == (made.chains[second], made.places[second])
        ]
        if not pairs:
            return None
        left, right = (features[list(side)] for side in zip(*pairs))
        return float((1 - F.cosine_similarity(left, right) < self._duplicate).float().mean())

    @staticmethod
    def _in_batches(images: Array, look: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([look(batch) for batch in torch.from_numpy(images).split(BATCH)])


def features_of(captured: Captured) -> Callable[[Tensor], Tensor]:
    """What the last convolution or linear layer of a network sees, (batch, features)."""
    last = [node for node in captured.module.graph.nodes if calls(node, *WEIGHTED)][-1]
    network = with_output(captured.module, [last.args[0]])
    return lambda images: network(images)[0].flatten(1)


def pairwise_distances(features: Tensor) -> Tensor:
    """Cosine distance of every pair of rows."""
    unit = F.normalize(features, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return 1 - (unit[first] * unit[second]).sum(1)


def between_images(gradients: list[Tensor]) -> float | None:
    """Cosine between the gradients of two images of a batch at the same step, averaged over pairs and steps."""
    values = [1 - float(pairwise_distances(gradient.flatten(1)).mean()) for gradient in gradients if len(gradient) > 1]
    return float(np.mean(values)) if values else None


def between_steps(gradients: list[Tensor], steps: int) -> float | None:
    """Cosine between the gradients of an image at two steps in a row of a chain, averaged over images and steps."""
    values = [
        float(F.cosine_similarity(before.flatten(1), after.flatten(1)).mean())
        for index, (before, after) in enumerate(itertools.pairwise(gradients))
        if (index + 1) % steps
    ]
    return float(np.mean(values)) if values else None


def diversity_table() -> str:
    """Diversity of images by setting and network, means over seeds, with what they do to the network."""
    results = latest(records.read(SUITE), ("network", "setting", "seed"))
    lines = [
        f"| network | images | {' | '.join(FIGURES.values())} | KL beside the defaults |",
        f"|---|---|{'---|' * (len(FIGURES) + 1)}",
    ]
    for network in unique(results, "network"):
        here = [r for r in results if r["network"] == network]
        real = _average(here, REAL, "statistics_spread")
        for setting in unique(here, "setting"):
            values = [_average(here, setting, name) for name in FIGURES]
            if values[1] is not None and real:
                values[1] /= real
            shown = ["-" if value is None else f"{value:.2f}" for value in values]
            divergence = ratio(log_ratios(here, network, setting, key="setting", beside=DEFAULTS))
            lines.append(f"| {network} | {setting} | {' | '.join(shown)} | {divergence} |")
    return "\n".join(lines)


def diversity_predicts_table() -> str:
    """Rank correlation over settings of ours of each figure with the divergence."""
    results = latest(records.read(SUITE), ("network", "setting", "seed"))
    lines = [f"| network | {' | '.join(FIGURES.values())} |", f"|---|{'---|' * len(FIGURES)}"]
    for network in unique(results, "network"):
        here = [r for r in results if r["network"] == network and r["setting"] in OF_OURS]
        lines.append(f"| {network} | {' | '.join(_correlation(here, name) for name in FIGURES)} |")
    return "\n".join(lines)


def _correlation(here: Records, name: str) -> str:
    pairs = [
        (value, statistics.mean(log_kl(r) for r in here if r["setting"] == setting))
        for setting in unique(here, "setting")
        if (value := _average(here, setting, name)) is not None
    ]
    if len(pairs) < FEWEST_TO_RANK or len({value for value, _ in pairs}) == 1:
        return "-"
    found = spearmanr(*zip(*pairs))
    return f"{found.statistic:+.2f} (p = {found.pvalue:.2f}, {len(pairs)} settings)"


def _average(here: Records, setting: str, name: str) -> float | None:
    values = [r[name] for r in here if r["setting"] == setting and r[name] is not None]
    return statistics.mean(values) if values else None
