"""How well a quantized network does: pure functions of outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dffg.errors import InputError

Outputs = NDArray[np.floating[Any]]
_MOST_BROKEN_AGREEMENT, _LEAST_KAPPA = 0.5, 0.1
# How far from 1 the sum of probabilities may be: they are float32, or half of it.
_SUM_TOLERANCE = 1e-3
# What a probability of 0 counts as: the smallest number that float32 has whole.
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 of the float and the quantized network on the same labelled examples.

    float_top1, quantized_top1: percent. drop_points: float minus quantized, positive is worse. standard_error: of the
    drop, paired, in points. kl_to_float: mean KL divergence of the quantized from the float prediction, in nats.
    """

    float_top1: float
    quantized_top1: float
    drop_points: float
    standard_error: float
    kl_to_float: float
    kl_standard_error: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Top-1 in percent with its binomial standard error in points."""

    top1: float
    standard_error: float
    count: int


def score(outputs: Outputs, labels: NDArray[np.int64]) -> Score:
    """Score one network. Outputs: (examples, classes). Raises InputError where labels are of other classes."""
    check_labels(outputs.shape[1], labels)
    share = float((top1(outputs) == labels).mean())
    error = 100 * math.sqrt(share * (1 - share) / len(labels))
    return Score(top1=100 * share, standard_error=error, count=len(labels))


def compare(reference: Outputs, outputs: Outputs, labels: NDArray[np.int64]) -> Accuracy:
    """Score a quantized network beside its float network. Outputs: (examples, classes, ...); errors as in `score`."""
    check_labels(reference.shape[1], labels)
    before, after = (top1(values) == labels for values in (reference, outputs))
    divergence = kl_divergence(reference, outputs)
    return Accuracy(
        float_top1=100 * float(before.mean()),
        quantized_top1=100 * float(after.mean()),
        drop_points=100 * float(before.mean() - after.mean()),
        standard_error=100 * standard_error(before.astype(float) - after.astype(float)),
        kl_to_float=float(divergence.mean()),
        # The places of one example are not independent of each other.
        kl_standard_error=standard_error(divergence.reshape(len(divergence), -1).mean(1)),
        count=len(labels),
    )


def check_labels(classes: int, labels: NDArray[np.int64]) -> None:
    """Raises InputError where labels are not those of a network with so many classes."""
    if classes == 1:
        raise InputError("top-1 is not defined for a network that answers with one number; leave the labels out.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels go from {labels.min()} to {labels.max()}, and the network has {classes} classes; count from 0."
        )


def top1(outputs: Outputs) -> NDArray[np.int64]:
    """Predicted class of every example; further output axes are averaged."""
    classes: NDArray[np.int64] = outputs.reshape(*outputs.shape[:2], -1).mean(-1).argmax(1).astype(np.int64)
    return classes


def agreement(reference: Outputs, outputs: Outputs) -> float:
    """Share of examples on which both predict the same class."""
    return float((top1(reference) == top1(outputs)).mean())


def why_broken(reference: Outputs, outputs: Outputs) -> str | None:
    """What is wrong with a network that answers nonsense where the float network does not; None where nothing is.

    Answers that are not finite, the same for all examples, or the float network's class in less than half of the
    examples and not more often than by chance: Cohen's kappa (1960), (agreement - chance) / (1 - chance), below 0.1.
    Where nearly all examples are of one class, which says nothing: answers whose difference from their mean has as much
    noise as signal. Where there is one class, and so nothing to agree on: answers of as much noise as signal.
    """
    if not np.isfinite(outputs).all():
        return "it answers NaN or infinite values"
    if np.ptp(reference, axis=0).any() and not np.ptp(outputs, axis=0).any():
        return "it answers the same to every input"
    if outputs.shape[1] == 1 and sqnr_db(reference, outputs) <= 0:
        return "its answer has as much noise as signal"
    agreed, chance = agreement(reference, outputs), _agreement_by_chance(top1(reference), top1(outputs))
    if chance < 1 and agreed - chance >= _LEAST_KAPPA * (1 - chance):
        return None
    if agreed < _MOST_BROKEN_AGREEMENT:
        return f"it agrees with the float network in {agreed:.0%} of the examples, which is chance"
    told_apart = _centred(reference)
    if told_apart.any() and power(_centred(outputs) - told_apart) >= power(told_apart):
        return "what tells the examples apart in its answer has as much noise as signal"
    return None


def _agreement_by_chance(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """How often two draws would be equal that have these shares of classes and nothing else in common."""
    return float(sum((first == label).mean() * (second == label).mean() for label in np.unique(first)))


def kl_divergence(reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
    """KL(p || q) of every example, in nats; further output axes stay.

    p and q are the softmax of logits, or, where `reference` holds probabilities, both as they are.
    """
    if _are_probabilities(reference):
        # Their logarithms are logits of the same predictions, also where those of a quantized network add up to 1.01.
        reference, outputs = map(_log_probabilities, (reference, outputs))
    log_p, log_q = _log_softmax(reference), _log_softmax(outputs)
    result: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return result


def _are_probabilities(outputs: Outputs) -> bool:
    """Whether a network's answer has been through a softmax, as most exports of Keras have."""
    if outputs.shape[1] == 1 or not (outputs >= 0).all():
        return False
    return bool((np.abs(outputs.sum(1, dtype=np.float64) - 1) <= _SUM_TOLERANCE).all())


def _log_probabilities(outputs: Outputs) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.log(np.maximum(outputs.astype(np.float64), _LEAST_PROBABILITY))
    return result


def sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Signal to quantization noise ratio: 10 log10(sum reference^2 / sum (reference - outputs)^2)."""
    return power_ratio_db(power(reference), power(reference.astype(np.float64) - outputs))


def power(values: NDArray[np.floating[Any]]) -> float:
    """Sum of the squares."""
    return float(np.square(values, dtype=np.float64).sum())


def _centred(outputs: Outputs) -> NDArray[np.float64]:
    """What is left of answers without the mean over all examples."""
    centred: NDArray[np.float64] = outputs - outputs.mean(0, dtype=np.float64)
    return centred


def power_ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite where there is no noise, minus infinite where there is only noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def standard_error(values: NDArray[np.floating[Any]]) -> float:
    """Standard error of a mean; NaN for a single value, which has none."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _log_softmax(outputs: Outputs) -> NDArray[np.float64]:
    shifted = outputs.astype(np.float64) - outputs.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
