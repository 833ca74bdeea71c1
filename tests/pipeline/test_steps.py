"""The whole road on a network trained in the test: real images, real training, the real runtime."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from benchmarks.digits import SPEC, Digits, train_digits
from torch import Tensor

import dffg
from dffg.cli.terminal import VERIFICATION_FAILED, console_for, show_result
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError, OutputError
from dffg.evaluation.data import load_data
from dffg.evaluation.metrics import Accuracy, compare
from dffg.graph.captured import capture
from dffg.images import SyntheticSet
from dffg.pipeline import steps
from dffg.pipeline.evaluate import evaluate
from dffg.pipeline.steps import quantize
from dffg.quant.decide import simulate
from dffg.report.command import python_call
from dffg.report.html import rebuild
from dffg.report.result import Result
from dffg.spec import ImageSpec
from dffg.storage.output import file_hash
from dffg.synthesis.synthesize import synthesize_set

QUICK = SynthesisConfig(count=32, batch_size=16, steps=8, seed=1)
# Points of top-1 at W4A4 by which synthetic images must beat N(0,1) noise, and their share of its KL divergence.
# Measured over four trainings: 3.9 to 20 points, 0.12 to 0.46. Uniform noise within the bounds ties on this network.
MARGIN_OVER_NOISE = 2.0
SHARE_OF_DIVERGENCE = 0.6


@pytest.fixture(scope="module")
def digits() -> Digits:
    return train_digits()


@pytest.fixture(scope="module")
def labelled(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, features=digits.images, labels=digits.labels)
    return path


@pytest.fixture(scope="module")
def counted() -> dict[str, list[tuple[int, int]]]:
    """What `finished` said of its stages: how much was done, and of how much."""
    return {}


@pytest.fixture(scope="module")
def finished(
    digits: Digits,
    labelled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    counted: dict[str, list[tuple[int, int]]],
) -> Result:
    out = tmp_path_factory.mktemp("run") / "out"
    stages: list[str] = []
    return quantize(
        digits.model,
        out,
        spec=SPEC,
        synthesis=QUICK,
        evaluation=load_data(labelled, SPEC, labelled=True),
        on_stage=stages.append,
        on_count=lambda *count: counted.setdefault(stages[-1], []).append(count),
    )


def test_stages_say_how_far_they_are(
    finished: Result, digits: Digits, counted: dict[str, list[tuple[int, int]]]
) -> None:
    batches = {"calibration": QUICK.count // QUICK.batch_size, "verify": 1, "evaluation": -(-len(digits.labels) // 32)}
    assert counted == {stage: [(done, of) for done in range(1, of + 1)] for stage, of in batches.items()}


def test_the_file_is_verified_and_all_integer(finished: Result) -> None:
    assert finished.verified
    assert finished.kernels.float == 0
    assert finished.kernels.integer == 5
    assert finished.float_operations == ()


def test_accuracy_is_kept(finished: Result, digits: Digits) -> None:
    assert finished.accuracy is not None
    assert finished.accuracy.count == len(digits.labels)
    assert finished.accuracy.float_top1 > 90
    assert abs(finished.accuracy.drop_points) < 1.5
    assert finished.accuracy.kl_to_float < 0.01


def test_the_baseline_is_the_same_network_with_ranges_from_noise(finished: Result, digits: Digits) -> None:
    captured = capture(digits.model, spec=SPEC)
    noise = synthesize_set(captured, SynthesisConfig(generator="noise", count=32, seed=QUICK.seed)).inputs
    batches = torch.split(torch.from_numpy(noise), QUICK.batch_size)
    with torch.no_grad():
        answer = simulate(captured, batches).module(torch.from_numpy(digits.images))
    accuracy = 100 * float((answer.argmax(1).numpy() == digits.labels).mean())
    assert finished.noise_baseline is not None
    assert finished.noise_baseline.quantized_top1 == pytest.approx(accuracy, abs=0.2)
    # The digits have values up to 16: noise of deviation 1 gives ranges that are far too narrow.
    assert finished.noise_baseline.drop_points > 2 * finished.noise_baseline.standard_error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "has no labels"),
        ({"labels": np.arange(5, 15)}, "labels go from 5 to 14, and the network has 10 classes"),
        ({"spec": ImageSpec(shape=(1, 9, 9), bounds=(0.0, 16.0))}, r"shape \(1, 9, 9\), the network takes \(1, 8, 8\)"),
    ],
)
def test_data_that_cannot_score_is_refused_before_any_work(
    digits: Digits, labelled: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = dataclasses.replace(load_data(labelled, SPEC, labelled=True).first(10), **change)
    stages: list[str] = []
    with pytest.raises(InputError, match=message):
        quantize(digits.model, tmp_path / "out", spec=SPEC, evaluation=data, on_stage=stages.append)
    assert stages == ["capture"]


@pytest.mark.parametrize("given", [{"input_shape": (1, 8, 8)}, {"spec": ImageSpec(shape=(1, 8, 8))}])
def test_another_input_of_a_captured_network_is_refused(digits: Digits, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the network is captured, with its input"):
        quantize(capture(digits.model, spec=SPEC), tmp_path / "out", **given)


def test_a_network_that_answers_with_no_axis_for_classes_is_refused(digits: Digits, tmp_path: Path) -> None:
    class Chosen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = digits.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x).amax(1)

    with pytest.raises(InputError, match="answers with 1 axes; it must return a batch of classes"):
        quantize(Chosen().eval(), tmp_path / "out", spec=SPEC, synthesis=QUICK)


def test_what_cannot_be_evaluated_is_said(finished: Result, labelled: Path, tmp_path: Path) -> None:
    data, out = load_data(labelled, SPEC, labelled=True), Path(finished.path)
    with pytest.raises(InputError, match="is a directory; name the file in it"):
        evaluate(out, data)
    with pytest.raises(InputError, match="there is no file"):
        evaluate(tmp_path / "model.onnx", data)
    wrong = dataclasses.replace(data, source=np.zeros((4, 1, 9, 9), np.float32), labels=np.zeros(4, np.int64))
    with pytest.raises(InputError, match="cannot be run on examples of shape"):
        evaluate(out / "model.onnx", wrong)


def test_folders_that_are_not_all_classes_are_refused(
    finished: Result, digits: Digits, labelled: Path, tmp_path: Path
) -> None:
    data = dataclasses.replace(load_data(labelled, SPEC, labelled=True), folders=(tmp_path / "3", tmp_path / "7"))
    says = r"has 2 folders of classes \(3 to 7\), and the network has 10 classes; .* a folder for every class"
    with pytest.raises(InputError, match=says):
        evaluate(Path(finished.path) / "model.onnx", data)
    with pytest.raises(InputError, match=says):
        quantize(digits.model, tmp_path / "out", spec=SPEC, evaluation=data.first(10))


def test_accuracy_in_the_report_is_that_of_the_written_file(finished: Result, labelled: Path) -> None:
    assert finished.accuracy is not None
    counted: list[tuple[int, int]] = []
    data = load_data(labelled, SPEC, labelled=True)
    score = evaluate(Path(finished.path) / "model.onnx", data, on_count=lambda *count: counted.append(count))
    assert score.top1 == pytest.approx(finished.accuracy.quantized_top1)
    assert counted == [(done, data.batch_count()) for done in range(1, data.batch_count() + 1)]


def test_five_files_are_written_and_the_report_holds_their_hashes(finished: Result) -> None:
    out = Path(finished.path)
    files = ["images.npz", "model.onnx", "parameters.npz", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == [*files, "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["files"] == {name: file_hash(out / name) for name in files}
    assert report["images"] == {"source": "synthetic images", "count": 32, "chains": 1, "steps": 8, "passes": 8}
    assert report["input"]["bounds"] == [0.0, 16.0]


def test_the_report_says_the_call_that_made_it(finished: Result, digits: Digits, tmp_path: Path) -> None:
    assert finished.command is not None
    call = finished.command.replace(finished.path, str(tmp_path / "again"))
    data = {"model": digits.model, "evaluation": None}
    again = eval(call, {"dffg": dffg, **data})
    assert again.files["model.onnx"] == finished.files["model.onnx"]
    assert again.synthesis == finished.synthesis


def test_the_call_has_all_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stop(*places: Any, **arguments: Any) -> str:
        said.append(python_call(*places, **arguments))
        raise InputError("no more is needed")

    monkeypatch.setattr(steps, "python_call", stop)
    given: dict[str, Any] = {"memory_limit": 2_000_000_000, "device": "cpu", "input_shape": (3, 8, 8)}
    for call in (
        lambda: quantize(torch.nn.ReLU(), "out", **given),
        lambda: steps.finetune(torch.nn.ReLU(), "old", "out", steps=3, target="openvino", device="cpu"),
        lambda: steps.finetune(torch.nn.ReLU(), "old", "out", steps=3),
    ):
        with pytest.raises(InputError, match="no more"):
            call()
    assert said == [
        "dffg.quantize(model, 'out', input_shape=(3, 8, 8), memory_limit=2000000000, device='cpu')",
        "dffg.finetune(model, 'old', 'out', steps=3, target='openvino', device='cpu')",
        "dffg.finetune(model, 'old', 'out', steps=3)",
    ]


def test_the_page_is_that_of_the_report_and_can_be_built_again(finished: Result) -> None:
    page = Path(finished.path) / "report.html"
    before = page.read_bytes()
    report = rebuild(Path(finished.path))
    assert page.read_bytes() == before
    assert report == finished.to_dict()
    assert f"{finished.agreement.top1:.1%}" in page.read_text(encoding="utf-8")


def test_the_range_of_a_layers_input_is_that_of_its_integers(finished: Result) -> None:
    arrays = np.load(Path(finished.path) / "parameters.npz")
    found = {}
    for name in {key.split("/")[1] for key in arrays.files if key.startswith("activation/")}:
        scale, zero, (low, high) = (arrays[f"activation/{name}/{part}"] for part in ("scale", "zero_point", "limits"))
        found[name] = (scale * (low - float(zero)), scale * (high - float(zero)))
    first, *_ = finished.layers
    assert first.input_range == pytest.approx((0.0, 16.0))
    for layer in finished.layers:
        assert any(layer.input_range == pytest.approx(limits) for limits in found.values())


def test_the_saved_images_are_the_ones_that_calibrated(finished: Result, digits: Digits) -> None:
    saved = SyntheticSet.load(Path(finished.path) / "images.npz")
    again = synthesize_set(capture(digits.model, spec=SPEC), QUICK)
    np.testing.assert_array_equal(saved.inputs, again.inputs)
    assert saved.config == QUICK


def test_the_same_seed_writes_the_same_network(finished: Result, digits: Digits, tmp_path: Path) -> None:
    again = quantize(digits.model, tmp_path / "again", spec=SPEC, synthesis=QUICK)
    # The page has times in it.
    assert {**again.files, "report.html": ""} == {**finished.files, "report.html": ""}
    other = quantize(digits.model, tmp_path / "other", spec=SPEC, synthesis=dataclasses.replace(QUICK, seed=2))
    assert other.files["images.npz"] != finished.files["images.npz"]


def test_no_socket_is_opened(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert quantize(digits.model, tmp_path / "out", spec=SPEC, synthesis=QUICK).verified


def test_synthetic_images_beat_noise_at_four_bits(digits: Digits) -> None:
    captured = capture(digits.model, spec=SPEC)
    inputs = torch.from_numpy(digits.images)
    with torch.no_grad():
        expected = digits.model(inputs).numpy()

    def measure(images: torch.Tensor) -> Accuracy:
        quantized = simulate(captured, [images], QuantizationConfig(bits="W4A4"))
        with torch.no_grad():
            answer = quantized.module(inputs).numpy()
        return compare(expected, answer, digits.labels)

    synthetic, noise = [], []
    for seed in range(3):
        made = synthesize_set(captured, SynthesisConfig(seed=seed, batch_size=32))
        synthetic.append(measure(torch.from_numpy(made.inputs)))
        noise.append(measure(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed))))
    ours, theirs = (statistics.mean(found.drop_points for found in cell) for cell in (synthetic, noise))
    assert theirs - ours > MARGIN_OVER_NOISE
    ours, theirs = (statistics.mean(found.kl_to_float for found in cell) for cell in (synthetic, noise))
    assert ours < SHARE_OF_DIVERGENCE * theirs


def test_real_data_takes_the_place_of_synthesis(digits: Digits, labelled: Path, tmp_path: Path) -> None:
    real = load_data(labelled, SPEC, labelled=False)
    result = quantize(digits.model, tmp_path / "out", spec=SPEC, synthesis=QUICK, calibration=real)
    assert result.images.source == "real images"
    assert result.synthesis is None
    with np.load(tmp_path / "out" / "images.npz") as saved:
        np.testing.assert_array_equal(saved["features"], digits.images[np.arange(32) * len(digits.images) // 32])


def test_ranges_come_from_all_parts_of_real_data_also_where_more_is_learned_from(
    digits: Digits, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    def decide(_: object, batches: Iterator[Tensor], __: object) -> None:
        raise SeenError(torch.cat(list(batches)))

    monkeypatch.setattr("dffg.pipeline.steps.decide", decide)
    real, learning = load_data(labelled, SPEC, labelled=False), LearningConfig(learning_images=64, recipe="balanced")
    with pytest.raises(SeenError) as seen:
        quantize(digits.model, tmp_path / "out", spec=SPEC, synthesis=QUICK, learning=learning, calibration=real)
    chosen = (np.arange(32) * 64 // 32) * len(digits.images) // 64
    np.testing.assert_array_equal(seen.value.args[0].numpy(), digits.images[chosen])


def test_few_bits_are_learned_written_and_verified(digits: Digits, labelled: Path, tmp_path: Path) -> None:
    four_bits, said = QuantizationConfig(bits="W2A4", first_last_bits=8), []
    # Chains as long as those of everybody: from images of 8 passes a block learns what no digit has.
    thorough = SynthesisConfig(count=32, seed=1)
    learning = LearningConfig(learning_images=128, reconstruction_steps=150, finetune_steps=5)
    results = {}
    for name, config in (("fast", LearningConfig(recipe="fast")), ("learned", learning)):
        results[name] = quantize(
            digits.model,
            tmp_path / name,
            spec=SPEC,
            synthesis=thorough,
            quantization=four_bits,
            learning=config,
            evaluation=load_data(labelled, SPEC, labelled=True),
            learning_progress=said.append,
        )
    assert results["learned"].images.count == 128
    assert results["fast"].images.count == thorough.count
    assert results["learned"].learning.recipe == "balanced"
    assert results["learned"].seconds.learning > 0
    assert results["fast"].seconds.learning == 0
    blocks, steps = said[:-5], said[-5:]
    assert [state.done for state in blocks] == list(range(1, blocks[0].total + 1))
    assert [(state.done, state.total) for state in steps] == [(step, 5) for step in range(1, 6)]
    divergences = {name: found.accuracy.kl_to_float for name, found in results.items() if found.accuracy is not None}
    assert divergences["learned"] < 0.7 * divergences["fast"]
    result = results["learned"]
    assert result.verified
    widths = [(layer.weight_bits, layer.activation_bits) for layer in result.layers]
    outer = 7 if result.quantization.reduce_range else 8
    # The second layer reads what the first one gives.
    assert widths == [(outer, 8), (2, 8), *[(2, 4)] * (len(widths) - 3), (outer, 8)]
    assert result.kernels.float == 0


@pytest.mark.parametrize("budget", ["size=0.45x", "bops=0.2x"])
def test_mixed_bits_are_written_and_verified_within_the_budget(digits: Digits, tmp_path: Path, budget: str) -> None:
    mixed = QuantizationConfig(bits="mixed", budget=budget)
    result = quantize(digits.model, tmp_path / "out", spec=SPEC, synthesis=QUICK, quantization=mixed)
    assert result.verified
    assert result.kernels.float == 0
    assert len({layer.weight_bits for layer in result.layers}) > 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    limit = float(budget.partition("=")[2].rstrip("x"))
    assert report["scheme"] == f"mixed bits ({budget}, A8)"
    assert 0 < report["mixed"]["chosen"]["cost"] <= limit
    costs = [point["cost"] for point in report["mixed"]["frontier"]]
    assert costs == sorted(costs)
    assert sorted(report["mixed"]["widths"]["weights"].values()) == sorted(layer.weight_bits for layer in result.layers)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    names = {name: f"{name}_weight" for name in report["mixed"]["widths"]["weights"]}
    stored = sum(len(entry.raw_data) for entry in model.graph.initializer if entry.name in names.values())
    if budget.startswith("size"):
        weights = sum(math.prod(entry.dims) for entry in model.graph.initializer if entry.name in names.values())
        assert stored / weights == pytest.approx(report["mixed"]["chosen"]["cost"])


def test_a_full_directory_is_refused_and_force_replaces_only_the_result(
    finished: Result, digits: Digits, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    # of an earlier run, for another target
    (out / "model.pt2").touch()
    (out / "report.json").write_text(json.dumps({"schema_version": 1, "files": {"model.pt2": "", "../mine.txt": ""}}))
    with pytest.raises(OutputError, match="--force"):
        quantize(digits.model, out, spec=SPEC, synthesis=QUICK)
    quantize(digits.model, out, spec=SPEC, synthesis=QUICK, force=True)
    assert (out / "mine.txt").read_text() == "keep me"
    assert not (out / "model.pt2").exists()
    assert file_hash(out / "model.onnx") == finished.files["model.onnx"]


def test_a_failure_in_the_middle_leaves_nothing(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(KeyboardInterrupt):
        quantize(digits.model, tmp_path / "out", spec=SPEC, synthesis=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_verification_is_said_and_has_its_own_exit_code(
    finished: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = dataclasses.replace(
        finished,
        simulation_match=dataclasses.replace(finished.simulation_match, equal_share=0.9),
        problems=("the runtime disagrees with the simulation",),
    )
    assert show_result(bad, console_for(False, False), quiet=True, as_json=False) == VERIFICATION_FAILED
    assert "verification failed: the runtime disagrees" in capsys.readouterr().err
    assert show_result(finished, console_for(True, False), quiet=True, as_json=False) == 0
