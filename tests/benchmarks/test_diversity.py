import math

import numpy as np
import pytest
import torch
from benchmarks.diversity import Made, Meter, between_images, between_steps, features_of, make, pairwise_distances

from benchmarks import ablation, diversity, records
from dffg.graph.captured import capture
from tests.benchmarks.made_up import judged
from tests.benchmarks.small import small_benchmark


@pytest.fixture(scope="module")
def benchmark_network():
    return small_benchmark()


@pytest.fixture(scope="module")
def captured(benchmark_network):
    return capture(benchmark_network.model, spec=benchmark_network.spec)


@pytest.fixture(scope="module")
def meter(benchmark_network, captured):
    return Meter(captured, benchmark_network.real_images(64, 0))


def test_distances_are_those_of_every_pair():
    rows = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
    assert pairwise_distances(rows).tolist() == pytest.approx([1.0, 2.0, 1.0])


def test_gradients_of_a_batch_that_pull_together_and_apart():
    together, apart = torch.ones(3, 1, 2, 2), torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert between_images([together]) == pytest.approx(1.0)
    assert between_images([apart, apart]) == pytest.approx(-1.0)
    assert between_images([together, apart]) == pytest.approx(0.0)
    assert between_images([]) is None


def test_gradients_of_two_chains_are_not_compared():
    ones = torch.ones(1, 1, 2, 2)
    assert between_steps([ones, ones, -ones, -ones], steps=2) == pytest.approx(1.0)
    assert between_steps([ones, ones, -ones, -ones], steps=4) == pytest.approx(1 / 3)
    assert between_steps([], steps=0) is None


def test_features_are_what_the_last_layer_sees(captured, benchmark_network):
    images = torch.from_numpy(benchmark_network.real_images(4, 0))
    seen = []
    last = [module for module in benchmark_network.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    benchmark_network.model(images)
    handle.remove()
    assert torch.allclose(features_of(captured)(images), seen[0].flatten(1), atol=1e-5)


def test_copies_are_found_and_have_no_spread(meter, benchmark_network):
    same = benchmark_network.real_images(1, 0).repeat(4, axis=0)
    figures = meter.measure(Made(inputs=same, chains=[0, 0, 0, 0], places=[0, 1, 0, 1]))
    assert figures["near_duplicates"] == 1.0
    assert figures["feature_distance"] == pytest.approx(0, abs=1e-5)
    assert figures["statistics_spread"] == pytest.approx(0, abs=1e-5)
    low, high = (np.broadcast_to(bound, (1, 3, 8, 8)) for bound in benchmark_network.spec.input_bounds())
    apart = np.concatenate([low, low, high, high]).astype(np.float32)
    different = meter.measure(Made(inputs=apart, chains=[0] * 4, places=[0, 1, 0, 1]))
    assert different["near_duplicates"] == 0.0
    assert different["statistics_spread"] > 0.01


def test_only_snapshots_of_one_image_are_pairs(meter, benchmark_network):
    inputs = benchmark_network.real_images(3, 0)
    assert meter.measure(Made(inputs=inputs, chains=[0, 0, 1], places=[0, 1, 0]))["near_duplicates"] is None


def test_the_spread_is_that_of_channel_means(meter, captured, benchmark_network):
    images = benchmark_network.real_images(6, 0)
    norms = [module for module in benchmark_network.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = []
    handles = [n.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0]))) for n in norms]
    with torch.no_grad():
        benchmark_network.model(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    expected = torch.cat([x.mean((2, 3)) / (n.running_var + n.eps).sqrt() for n, x in seen], dim=1).std(0).mean()
    assert meter.measure(Made(inputs=images))["statistics_spread"] == pytest.approx(float(expected), rel=1e-3)


def test_gradients_of_every_pass_are_noted(benchmark_network, captured):
    made = make(benchmark_network, captured, "keep the last only", 0)
    assert len(made.gradients) == 64
    assert (made.steps, made.chains[0], made.chains[-1]) == (16, 0, 3)
    assert made.places == list(range(16)) * 4
    assert len(made.inputs) == 64


def test_images_of_a_setting_are_those_of_the_ablation(benchmark_network, captured):
    """Noting gradients must not change them."""
    for name in ("batch 4", "random layer weights"):
        change = ablation.CHANGES[name]
        made = make(benchmark_network, captured, name, 0)
        again = ablation.make_images(captured, diversity._synthesis(name, 0), change)
        assert torch.equal(torch.from_numpy(made.inputs), torch.from_numpy(again))


def test_every_setting_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(diversity, "load_benchmarks", lambda names: iter([small_benchmark("small")]))
    for _ in range(2):
        diversity.run_suite(["small"], [0], ["real images", "noise", "defaults", "batch 4"])
    found = {record["setting"]: record for record in records.read("diversity")}
    assert list(found) == ["real images", "noise", "defaults", "batch 4"]
    assert len(records.read("diversity")) == 4
    assert found["real images"]["gradient_correlation"] is None
    assert -1 <= found["defaults"]["gradient_correlation"] <= 1
    assert all(math.isfinite(value) for value in found["defaults"]["kl"].values())


NAMES = ("batch 4", "decay 0", "decay 1", "per image")


def test_diversity_is_beside_real_images_and_predicts_by_rank(store):
    def one(setting, value, kl):
        return judged(setting, 0, kl, key="setting", **dict.fromkeys(diversity.FIGURES, value))

    store["diversity"] = [one("real images", 2.0, 1.0), one("noise", 9.0, 99.0)] + [
        one(name, float(index), math.exp(-index)) for index, name in enumerate(("defaults", *NAMES))
    ]
    found = {line.split("|")[2].strip(): line for line in diversity.diversity_table().splitlines()[2:]}
    assert found[NAMES[0]].split("|")[4].strip() == "0.50"  # a spread of 1 beside 2 of real images
    assert found[NAMES[0]].split("|")[-2].strip() == "0.37"
    assert "-1.00 (p = 0.00, 5 settings)" in diversity.diversity_predicts_table()
