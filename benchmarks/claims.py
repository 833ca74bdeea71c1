"""What one source of images gives beside another, over seeds, and what follows for what we claim."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from benchmarks.rows import Records

# Real data that keeps less than this share of float accuracy makes a comparison meaningless.
LEAST_SHARE_OF_FLOAT = 0.5
MARGIN_OVER_NOISE = 5.0
# Divergence of ours that still counts as that of real images.
MOST_KL_OF_REAL = 1.25
HEAD = (
    "| network, quantizer | seeds | ours over real images | beside real images | KL, of that of real images "
    "| ours over noise | 5 over noise |\n|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One setting on one network through one quantizer, over seeds; points of top-1 and nats.

    `seed_error` is the standard error of the mean over seeds, NaN for one seed; `image_error` that of a drop over the
    evaluation images.
    """

    label: str
    passes: float
    drop: float
    kl: float
    seed_error: float
    image_error: float
    float_top1: float
    seeds: int


def summary(label: str, scores: Records, passes: float = 0.0) -> Summary:
    """Of the scores of all seeds."""
    drops = [score["drop_points"] for score in scores]
    return Summary(
        label=label,
        passes=passes,
        drop=statistics.mean(drops),
        kl=statistics.mean(score["kl_to_float"] for score in scores),
        seed_error=statistics.stdev(drops) / math.sqrt(len(drops)) if len(drops) > 1 else math.nan,
        image_error=statistics.mean(score["standard_error"] for score in scores),
        float_top1=scores[0]["float_top1"],
        seeds=len(drops),
    )


def error_between(one: Summary, other: Summary) -> float:
    """Standard error of a difference of two drops: over the seeds of both, and over the images that they share."""
    over_seeds = [error for error in (one.seed_error, other.seed_error) if not math.isnan(error)]
    return math.hypot(*over_seeds, max(one.image_error, other.image_error))


def row(head: str, ours: Summary, real: Summary, noise: Summary | None) -> str:
    """Points gained over real images and noise, with the standard error, the ratio of divergences, and what follows."""
    over_noise = [gain(ours, noise), _exceeds(ours, noise, MARGIN_OVER_NOISE)] if noise else ["-", "-"]
    cells = [head, str(ours.seeds), gain(ours, real), _beside(ours, real), _kl_beside(ours, real), *over_noise]
    return f"| {' | '.join(cells)} |"


def gain(ours: Summary, other: Summary) -> str:
    """Points of top-1 that ours is ahead."""
    return f"{other.drop - ours.drop:+.2f} +- {error_between(ours, other):.2f}"


def verdict(ours: Summary, other: Summary) -> str:
    """Ahead or behind by more than the standard error."""
    ahead, error = other.drop - ours.drop, error_between(ours, other)
    return "better" if ahead > error else "level" if ahead >= -error else "worse"


def _beside(ours: Summary, real: Summary) -> str:
    return "no claim, real images fail too" if _fails(real) else verdict(ours, real)


def _kl_beside(ours: Summary, real: Summary) -> str:
    ratio = ours.kl / real.kl
    return f"{ratio:.2f}" + ("" if _fails(real) else ", holds" if ratio <= MOST_KL_OF_REAL else ", fails")


def _fails(real: Summary) -> bool:
    return real.float_top1 - real.drop < LEAST_SHARE_OF_FLOAT * real.float_top1


def _exceeds(ours: Summary, other: Summary, margin: float) -> str:
    ahead, error = other.drop - ours.drop, error_between(ours, other)
    return "yes" if ahead - error >= margin else "within the error" if ahead + error >= margin else "no"
