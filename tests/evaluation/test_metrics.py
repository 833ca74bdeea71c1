from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from dffg.evaluation.metrics import agreement, compare, kl_divergence, score, sqnr_db, standard_error, top1, why_broken


@pytest.fixture
def logits():
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(50, 6)).astype(np.float32) * 3
    outputs = reference + generator.normal(size=(50, 6)).astype(np.float32)
    labels = np.where(generator.random(50) < 0.7, reference.argmax(1), generator.integers(0, 6, 50)).astype(np.int64)
    return reference, outputs, labels


def test_kl_divergence_is_scipys(logits):
    reference, outputs, _ = logits
    p, q = (special.softmax(values.astype(np.float64), axis=1) for values in (reference, outputs))
    np.testing.assert_allclose(kl_divergence(reference, outputs), stats.entropy(p, q, axis=1), rtol=1e-9)


def test_kl_divergence_has_a_direction():
    sure, unsure = np.array([[8.0, 0.0]]), np.array([[0.0, 0.0]])
    assert kl_divergence(sure, unsure)[0] == pytest.approx(math.log(2), rel=0.01)
    assert kl_divergence(unsure, sure)[0] == pytest.approx(-0.5 * math.log(4 * math.exp(-8)), rel=0.01)


def test_kl_divergence_of_equal_and_of_shifted_logits_is_zero(logits):
    reference = logits[0]
    assert not kl_divergence(reference, reference).any()
    np.testing.assert_allclose(kl_divergence(reference, reference + 5), 0, atol=1e-5)


def test_kl_divergence_of_huge_logits_is_finite():
    reference, outputs = np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([[0.0, 1e4], [0.0, 1e4]])
    np.testing.assert_allclose(kl_divergence(reference, outputs), [1e4, 0.0])


@pytest.mark.parametrize("shape", [(50, 6), (50, 6, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_kl_divergence_of_probabilities_is_that_of_their_logits(shape, dtype):
    generator = np.random.default_rng(0)
    reference = generator.normal(size=shape)
    outputs = reference + 0.3 * generator.normal(size=shape)
    probabilities = [special.softmax(values, axis=1).astype(dtype) for values in (reference, outputs)]
    tolerance = {np.float32: 1e-5, np.float16: 2e-2}[dtype]
    np.testing.assert_allclose(kl_divergence(*probabilities), kl_divergence(reference, outputs), tolerance, tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_kl_divergence_of_certain_probabilities_is_finite(dtype):
    certain = np.eye(2).astype(dtype)
    least = math.log(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(kl_divergence(certain, certain[::-1]), [-least, -least])


def test_kl_divergence_of_probabilities_by_hand():
    reference = np.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    outputs = np.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.02]])  # of a quantized network: 0, and more than 1 together
    tiny = math.log(np.finfo(np.float32).tiny)
    expected = [0.5 * math.log(0.5) - 0.5 * tiny, 0.25 * math.log(0.5) + 0.75 * math.log(1.5) + math.log(1.02)]
    np.testing.assert_allclose(kl_divergence(reference, outputs), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "reference",
    [[[0.5, 0.5], [0.5, 0.6]], [[0.5, 0.5], [1.5, -0.5]], [[1.0], [1.0]]],
    ids=["not all add up to 1", "negative", "one class"],
)
def test_what_only_resembles_probabilities_is_logits(reference):
    reference = np.array(reference)
    outputs = 2 * reference
    p, q = (special.softmax(values, axis=1) for values in (reference, outputs))
    np.testing.assert_allclose(kl_divergence(reference, outputs), stats.entropy(p, q, axis=1), rtol=1e-9)


def test_standard_error_of_the_divergence_is_that_of_examples():
    generator = np.random.default_rng(0)
    # Every place of an example is equally wrong: more of them say nothing new.
    reference, noise = generator.normal(size=(2, 40, 5, 1))
    one = compare(reference, reference + noise, np.zeros(40, np.int64))
    many = compare(np.tile(reference, 9), np.tile(reference + noise, 9), np.zeros(40, np.int64))
    assert many.kl_standard_error == pytest.approx(one.kl_standard_error)
    divergence = kl_divergence(*generator.normal(size=(2, 40, 5, 3, 3)))
    assert divergence.shape == (40, 3, 3)


def test_standard_error_of_unlike_places_is_scipys():
    reference, outputs = np.random.default_rng(0).normal(size=(2, 40, 5, 3, 3))
    divergence = kl_divergence(reference, outputs)
    found = compare(reference, outputs, np.zeros(40, np.int64))
    assert found.kl_to_float == pytest.approx(divergence.mean())
    assert found.kl_standard_error == pytest.approx(stats.sem(divergence.mean((1, 2))))


def test_score_is_sklearns_with_a_binomial_error(logits):
    _, outputs, labels = logits
    found = score(outputs, labels)
    share = sklearn_metrics.accuracy_score(labels, outputs.argmax(1))
    assert found.top1 == pytest.approx(100 * share)
    assert found.standard_error == pytest.approx(100 * stats.binom(50, share).std() / 50)
    assert found.count == 50


def test_compare_scores_both_on_the_same_examples(logits):
    reference, outputs, labels = logits
    found = compare(reference, outputs, labels)
    float_share, quantized_share = (
        sklearn_metrics.accuracy_score(labels, values.argmax(1)) for values in (reference, outputs)
    )
    divergence = kl_divergence(reference, outputs)
    differences = (reference.argmax(1) == labels).astype(float) - (outputs.argmax(1) == labels)
    assert found.float_top1 == pytest.approx(100 * float_share)
    assert found.quantized_top1 == pytest.approx(100 * quantized_share)
    assert found.drop_points == pytest.approx(100 * (float_share - quantized_share))
    assert found.standard_error == pytest.approx(100 * stats.sem(differences))
    assert found.kl_to_float == pytest.approx(divergence.mean())
    assert found.kl_standard_error == pytest.approx(stats.sem(divergence))
    assert found.count == 50


def test_drop_is_positive_where_the_quantized_network_is_worse():
    reference, outputs = np.eye(4), np.roll(np.eye(4), 1, axis=1)
    found = compare(reference, outputs, np.arange(4))
    assert (found.float_top1, found.quantized_top1, found.drop_points, found.standard_error) == (100, 0, 100, 0)


def test_paired_error_by_hand():
    # right: 1 1 1 0 against 1 0 1 1 -> differences 0 1 0 -1, mean 0, sample variance 2/3
    labels = np.array([0, 0, 0, 0])
    zero, one = [1.0, 0.0], [0.0, 1.0]
    found = compare(np.array([zero, zero, zero, one]), np.array([zero, one, zero, zero]), labels)
    assert found.drop_points == 0
    assert found.standard_error == pytest.approx(100 * math.sqrt(2 / 3 / 4))


def test_standard_error_of_one_value_is_unknown():
    assert math.isnan(standard_error(np.array([3.0])))
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)


def test_agreement_is_the_share_of_equal_predictions(logits):
    reference, outputs, _ = logits
    expected = sklearn_metrics.accuracy_score(reference.argmax(1), outputs.argmax(1))
    assert agreement(reference, outputs) == pytest.approx(expected)
    assert agreement(reference, reference) == 1.0
    assert agreement(np.eye(4), np.roll(np.eye(4), 1, axis=1)) == 0.0


def test_further_output_axes_are_averaged():
    outputs = np.zeros((1, 2, 2, 2))
    outputs[0, 0, 0, 0] = 3
    outputs[0, 1] = 1
    # means 0.75 and 1, though the largest value is in class 0
    assert top1(outputs).tolist() == [1]
    assert top1(outputs).dtype == np.int64


def test_sqnr_by_hand():
    reference = np.array([3.0, 4.0], dtype=np.float32)
    assert sqnr_db(reference, reference + np.array([0.3, -0.4], dtype=np.float32)) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(reference, -reference) == pytest.approx(10 * math.log10(1 / 4))


def test_sqnr_without_noise_or_signal():
    ones, zeros = np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.float32)
    assert sqnr_db(ones, ones) == math.inf
    assert sqnr_db(zeros, ones) == -math.inf
    assert sqnr_db(zeros, zeros) == math.inf


def test_sqnr_adds_up_in_double_precision():
    reference = np.full(2**20, 1e3, dtype=np.float32)
    assert sqnr_db(reference, reference + np.float32(0.125)) == pytest.approx(20 * math.log10(1e3 / 0.125), rel=1e-9)


@pytest.mark.parametrize("shape", [(8, 1), (8, 1, 4)], ids=str)
def test_an_answer_of_one_class_is_broken_where_noise_is_as_large(shape):
    """Agreement says nothing there: the largest of one is always the same."""
    reference = np.random.default_rng(0).normal(size=shape)
    assert why_broken(reference, 1.9 * reference) is None
    assert why_broken(reference, 2.1 * reference) == "its answer has as much noise as signal"


def test_noise_alone_does_not_break_what_picks_a_class():
    reference = np.random.default_rng(0).normal(size=(64, 4))
    assert why_broken(reference, 3 * reference) is None


@pytest.mark.parametrize("other", [0, 1], ids=["all of one class", "nearly all of one class"])
def test_agreement_on_the_usual_class_is_no_proof(other):
    """Where float answers one class to nearly everything, nothing but noise beside the mean agrees, too."""
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(64, 4)) + np.array([20, 0, 0, 0])
    reference[:other, 1] += 40
    noisy = reference.mean(0) + 2 * generator.normal(size=(64, 4))
    assert agreement(reference, noisy) > 0.9
    assert "has as much noise as signal" in why_broken(reference, noisy)
    assert why_broken(reference, reference + 0.3 * generator.normal(size=(64, 4))) is None


def test_answers_that_are_all_the_same_may_be_moved():
    reference = np.tile([3.0, 1.0, 2.0], (8, 1))
    assert why_broken(reference, reference + 0.1) is None
