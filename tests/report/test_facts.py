from __future__ import annotations

import dataclasses

import pytest

from dffg.report.facts import is_verified, key_facts, sqnr_by_layer, verdict, worst_first, written
from tests.report.pages import plain_report
from tests.report.test_result import ACCURACY

MEASURED = dataclasses.asdict(ACCURACY)


def changed(section, **values):
    return plain_report(**{section: plain_report()[section] | values})


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (
            plain_report(),
            "Verified in onnxruntime: 4.0 times smaller and 2.0 times faster than the float network; accuracy was not "
            "measured.",
        ),
        (plain_report(accuracy=MEASURED), "it loses 1.25 ± 0.50 points of top-1."),
        (plain_report(accuracy=MEASURED | {"drop_points": -0.5}), "it gains 0.50 ± 0.50 points of top-1."),
        (plain_report(accuracy=MEASURED | {"drop_points": 0.0}), "it loses nothing of its top-1."),
        (plain_report(accuracy=MEASURED | {"standard_error": None}), "it loses 1.25 points of top-1."),
        (changed("latency_ms", quantized=6.0), "4.0 times smaller and 1.5 times slower than"),
        (changed("size_bytes", quantized=8000), "2.0 times larger and 2.0 times faster than"),
        (changed("simulation_match", equal_share=0.5), "Do not use this file: onnxruntime computes something else"),
        (
            changed("agreement", broken="it answers the same to every input"),
            "file: it answers the same to every input.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(report, sentence):
    assert sentence in verdict(report)


def test_key_facts_are_those_of_the_report():
    facts = {fact.label: (fact.value, fact.detail) for fact in key_facts(plain_report(accuracy=MEASURED))}
    assert facts == {
        "Accuracy": ("70.25 %", "71.50 % in float; drop +1.25 ± 0.50 points on 400 examples"),
        "Agreement": ("97.5%", "same top-1 as float on 16 held-out synthetic images, 31.2 dB"),
        "Size": ("1.0 kB", "4.0 kB in float; 4.0 times smaller"),
        "Latency": ("2.00 ms", "4.00 ms in float; 2.0 times faster; batch 1, 2 threads"),
        "Integer kernels": ("3 of 3", "convolutions and matrix products"),
        "Simulation match": (
            "99.950%",
            "of integers equal in the worst layer, at most 1 step apart; 100.0% same top-1",
        ),
    }


def test_accuracy_stands_beside_that_with_ranges_from_noise():
    report = plain_report(accuracy=MEASURED, noise_baseline=MEASURED | {"drop_points": 20.5})
    assert key_facts(report)[0].detail.endswith("on 400 examples; drop +20.50 with ranges from noise")


def test_a_broken_network_is_not_verified():
    assert is_verified(plain_report())
    assert not is_verified(changed("agreement", broken="it answers the same to every input"))


def test_accuracy_that_was_not_measured_is_no_fact():
    assert "Accuracy" not in {fact.label for fact in key_facts(plain_report())}


def test_a_file_for_a_runtime_that_is_not_here_is_not_said_to_be_verified_in_it_or_timed():
    report = plain_report(latency_ms=None, target="tensorrt")
    assert verdict(report).startswith("Written for tensorrt, verified in ONNX Runtime: ")
    assert "faster" not in verdict(report)
    assert "Latency" not in {fact.label for fact in key_facts(report)}


def test_layers_are_sorted_by_noise_and_keep_their_place():
    report = plain_report()
    found = worst_first(report["layers"])
    ratios = [layer["sqnr_db"] for _, layer in found]
    assert ratios[-1] is None
    assert ratios[:-1] == sorted(ratios[:-1])
    assert all(report["layers"][place - 1] is layer for place, layer in found)
    assert list(sqnr_by_layer(report)) == [layer["name"] for layer in report["layers"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (True, "yes"),
        (False, "no"),
        ([3, 224.0], "3, 224"),
        (0.0625, "0.0625"),
        ("kl", "kl"),
        (8, "8"),
    ],
)
def test_options_are_written_as_people_write_them(value, text):
    assert written(value) == text
