from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from dffg.config import Budget, LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.metrics import Accuracy
from dffg.export.runtime import Kernels
from dffg.export.verification import SimulationMatch
from dffg.machine.environment import describe_environment, package_version, peak_memory_bytes
from dffg.quant.allocation import Allocation
from dffg.quant.mixed import MixedPrecision
from dffg.quant.widths import BitWidths
from dffg.report.comparison import run_of
from dffg.report.result import Agreement, Images, Latency, Layer, Result, Seconds, find_problems, load_report
from dffg.report.terminal import describe_accuracy, render, render_batch
from dffg.spec import ImageSpec

KERNELS = Kernels(integer=3, float=0, other={"Reshape": 1})
AGREEMENT = Agreement(top1=0.975, sqnr_db=31.25, count=16)
LATENCY = Latency(float=4.0, quantized=2.0, batch=1, threads=2)
MATCH = SimulationMatch(
    top1=1.0,
    equal_share=0.9995,
    max_abs_difference_in_steps=1,
    worst_tensor="relu",
    output_error=0.0,
    unwatched_noise=0.0,
    count=16,
)
ACCURACY = Accuracy(
    float_top1=71.5,
    quantized_top1=70.25,
    drop_points=1.25,
    standard_error=0.5,
    kl_to_float=0.01,
    kl_standard_error=0.001,
    count=400,
)
RESULT = Result(
    model="demo:network",
    scheme="W8A8",
    target="onnxruntime",
    seed=7,
    version="0.1.0",
    environment=describe_environment(2),
    input=ImageSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6)),
    images=Images(source="synthetic images", count=64, chains=1, steps=16, passes=16),
    synthesis=SynthesisConfig(seed=7),
    quantization=QuantizationConfig(reduce_range=False),
    equalized="none",
    learning=LearningConfig().completed(QuantizationConfig()),
    seconds=Seconds(
        capture=1.0,
        synthesis=2.0,
        calibration=3.0,
        learning=0.5,
        held_out_images=2.5,
        export=4.0,
        verify=5.0,
        total=15.5,
    ),
    peak_memory_bytes=10**9,
    size_bytes={"float": 4000, "quantized": 1000},
    kernels=KERNELS,
    latency_ms=LATENCY,
    agreement=AGREEMENT,
    simulation_match=MATCH,
    accuracy=None,
    layers=(Layer(name="conv", weight_bits=8, activation_bits=8, sqnr_db=40.5, input_range=(0.0, 2.5)),),
    float_operations=("hardswish (hardswish)",),
    float_reasons={"hardswish (hardswish)": "no integer kernel known in onnxruntime"},
    zero_variance_channels=3,
    notes=("a note",),
    problems=(),
    files={"model.onnx": "00", "images.npz": "11"},
    path="out",
)
PROMISED = {
    "schema_version": None,
    "model": None,
    "scheme": None,
    "target": None,
    "seed": None,
    "version": None,
    "environment": {
        *("python", "torch", "onnxruntime", "onnx", "openvino", "executorch", "numpy"),
        *("system", "cpu", "threads", "vnni"),
    },
    "input": {"shape", "mean", "std", "bounds"},
    "images": {"source", "count", "chains", "steps", "passes"},
    "seconds": {"capture", "synthesis", "calibration", "learning", "held_out_images", "export", "verify", "total"},
    "peak_memory_bytes": None,
    "size_bytes": {"float", "quantized"},
    "kernels": {"integer", "float"},
    "latency_ms": {"float", "quantized", "batch", "threads"},
    "agreement": {"top1", "sqnr_db", "count"},
    "simulation_match": {"top1", "max_abs_difference_in_steps"},
    "accuracy": None,
    "layers": None,
    "notes": None,
    "problems": None,
    "files": {"model.onnx", "images.npz"},
}


@pytest.mark.parametrize("key", PROMISED)
def test_report_has_every_promised_key(key):
    plain = json.loads(RESULT.to_json())
    assert key in plain
    if PROMISED[key] is not None:
        assert PROMISED[key] <= plain[key].keys()


def test_report_holds_what_was_found():
    plain = json.loads(RESULT.to_json())
    assert plain["schema_version"] == 1
    assert (plain["model"], plain["scheme"], plain["target"], plain["seed"]) == (
        "demo:network",
        "W8A8",
        "onnxruntime",
        7,
    )
    assert plain["input"]["shape"] == [3, 8, 8]
    assert plain["images"] == {"source": "synthetic images", "count": 64, "chains": 1, "steps": 16, "passes": 16}
    assert plain["latency_ms"] == {"float": 4.0, "quantized": 2.0, "batch": 1, "threads": 2}
    assert plain["kernels"] == {"integer": 3, "float": 0, "other": {"Reshape": 1}}
    assert plain["layers"] == [
        {"name": "conv", "weight_bits": 8, "activation_bits": 8, "sqnr_db": 40.5, "input_range": [0.0, 2.5]}
    ]
    assert plain["float_operations"] == ["hardswish (hardswish)"]
    assert plain["float_reasons"] == {"hardswish (hardswish)": "no integer kernel known in onnxruntime"}
    assert plain["accuracy"] is None
    assert plain["simulation_match"]["max_abs_difference_in_steps"] == 1
    assert "not task accuracy" in plain["agreement"]["meaning"]
    assert plain["synthesis"]["seed"] == 7


def test_accuracy_is_reported_where_it_was_measured():
    plain = json.loads(dataclasses.replace(RESULT, accuracy=ACCURACY).to_json())
    assert plain["accuracy"] == dataclasses.asdict(ACCURACY)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_and_undefined_numbers_become_null(value):
    result = dataclasses.replace(
        RESULT,
        agreement=Agreement(top1=1.0, sqnr_db=value, count=16),
        layers=(*RESULT.layers, Layer(name="exact", weight_bits=8, activation_bits=8, sqnr_db=value)),
        accuracy=dataclasses.replace(ACCURACY, standard_error=value),
    )

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    plain = json.loads(result.to_json(), parse_constant=refuse)
    assert plain["agreement"]["sqnr_db"] is None
    assert [layer["sqnr_db"] for layer in plain["layers"]] == [40.5, None]
    assert plain["accuracy"]["standard_error"] is None
    assert plain["agreement"]["top1"] == 1.0


def test_report_is_saved_as_it_is_printed(tmp_path):
    result = dataclasses.replace(RESULT, model="netz-ä")
    result.save(tmp_path / "report.json")
    content = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert content == result.to_json() + "\n"
    assert json.loads(content)["model"] == "netz-ä"


def test_good_results_have_no_problems():
    assert find_problems(KERNELS, LATENCY, MATCH, AGREEMENT) == ()


@pytest.mark.parametrize("quantized", [4.0, 4.5])
def test_problem_of_a_file_that_is_not_faster(quantized):
    (problem,) = find_problems(KERNELS, dataclasses.replace(LATENCY, quantized=quantized), MATCH, AGREEMENT)
    assert f"not faster than the float file here ({quantized:.2f} ms against 4.00 ms)" in problem


@pytest.mark.parametrize(("share", "steps"), [(0.5, 1), (1.0, 3)])
def test_problem_of_a_file_that_does_not_match(share, steps):
    match = dataclasses.replace(MATCH, equal_share=share, max_abs_difference_in_steps=steps)
    (problem,) = find_problems(KERNELS, LATENCY, match, AGREEMENT)
    assert f"disagrees with the simulation: in relu only {share:.2%} of the integers are equal" in problem
    assert f"{steps} steps apart" in problem


def test_problem_of_float_kernels():
    (problem,) = find_problems(dataclasses.replace(KERNELS, float=2), LATENCY, MATCH, AGREEMENT)
    assert problem == "2 convolutions or matrix products run in float"


def test_the_mismatch_is_the_first_of_all_problems():
    match = dataclasses.replace(MATCH, max_abs_difference_in_steps=2)
    problems = find_problems(
        dataclasses.replace(KERNELS, float=1), dataclasses.replace(LATENCY, quantized=9.0), match, AGREEMENT
    )
    assert len(problems) == 3
    assert "disagrees" in problems[0]


def test_verified_means_that_the_simulation_matches():
    assert RESULT.verified
    match = dataclasses.replace(MATCH, equal_share=0.9)
    assert not dataclasses.replace(RESULT, simulation_match=match).verified


def test_speedup_is_float_over_quantized():
    assert LATENCY.speedup == 2.0


def shown(what: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def printed(result: Result) -> str:
    return shown(render(result))


def test_table_says_what_people_want_to_know():
    noise = dataclasses.replace(ACCURACY, drop_points=20.5)
    result = dataclasses.replace(RESULT, accuracy=ACCURACY, noise_baseline=noise, problems=("something is wrong",))
    text = printed(result)
    for expected in (
        "demo:network, W8A8 for onnxruntime",
        "64 synthetic images from 1 chain of 16 passes",
        "4.00 ms -> 2.00 ms (2.0x), batch 1, 2 threads",
        "3 of 3 convolutions and matrix products in int8",
        "97.5% top-1, 31.2 dB on 16",
        "not task accuracy",
        "drop +1.25 +- 0.50 points on 400 examples",
        "drop +20.50 points with ranges from noise",
        "conv 40.5 dB",
        "15.5 s: synthesis 2.0",
        "! something is wrong",
        "a note",
        "out",
    ):
        assert expected in text


def test_an_improvement_is_printed_as_a_negative_drop():
    better = dataclasses.replace(ACCURACY, drop_points=-0.5)
    assert "drop -0.50" in describe_accuracy(better)


def test_table_without_accuracy_does_not_mention_it():
    assert "examples" not in printed(RESULT)


def test_the_noisiest_layers_are_shown():
    layers = tuple(Layer(name=f"layer{i}", weight_bits=8, activation_bits=8, sqnr_db=50.0 - i) for i in range(5))
    assert "layer4 46.0 dB, layer3 47.0 dB, layer2 48.0 dB" in printed(dataclasses.replace(RESULT, layers=layers))


def test_mixed_widths_are_counted_and_the_frontier_is_printed_in_the_notation_of_the_budget():
    def point(cost, sensitivity, **bits):
        return Allocation(cost=cost, sensitivity=sensitivity, widths=BitWidths(weights=bits, activations={}))

    mixed = MixedPrecision(
        budget=Budget.parse("size=0.5x"),
        widths=BitWidths(weights={"a": 4, "b": 4, "c": 8}, activations={"x": 6}),
        chosen=point(0.4567, 0.0123, a=4, b=4, c=8),
        frontier=(point(0.25, 1.5, a=2, b=2, c=2), point(1.0, 0.001, a=8, b=8, c=8)),
    )
    layers = tuple(
        Layer(name=name, weight_bits=bits, activation_bits=6, sqnr_db=20.0)
        for name, bits in mixed.widths.weights.items()
    )
    text = printed(dataclasses.replace(RESULT, mixed=mixed, layers=layers))
    for expected in (
        "weights of 4 bits in 2, 8 bits in 1",
        "inputs of 6 bits in 3",
        "size=0.4567x, sensitivity 0.012",
        "size=0.25x, sensitivity 1.5: 2 bits in 3",
        "size=1x, sensitivity 0.001: 8 bits in 3",
    ):
        assert expected in text
    assert "frontier" not in printed(RESULT)
    plain = json.loads(dataclasses.replace(RESULT, mixed=mixed).to_json())["mixed"]
    assert plain["frontier"][1] == {
        "cost": 1.0,
        "sensitivity": 0.001,
        "widths": {"weights": {"a": 8, "b": 8, "c": 8}, "activations": {}},
    }


def test_names_in_brackets_are_printed_as_they_are():
    result = dataclasses.replace(RESULT, model="net[bold]", notes=("see [0, 1]",), path="out[1]")
    text = printed(result)
    for expected in ("net[bold]", "[0, 1]", "out[1]"):
        assert expected in text


def test_environment_names_versions_and_machine():
    import platform

    import torch

    found = describe_environment(3)
    assert found.python == platform.python_version()
    assert found.torch.startswith(torch.__version__.partition("+")[0])
    assert found.threads == 3
    assert found.cpu


def test_package_that_is_not_installed_has_an_unknown_version():
    assert package_version("dffg-no-such-package") == "unknown"


def test_peak_memory_is_in_bytes():
    import resource

    peak = peak_memory_bytes()
    assert peak is not None
    # this process has imported torch: more than 50 MB, and less than a terabyte
    assert 5e7 < peak < 1e12
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_what_is_needed_to_go_on_can_be_read_again(tmp_path):
    RESULT.save(tmp_path / "report.json")
    found = load_report(tmp_path / "report.json")
    assert found.quantization == RESULT.quantization
    assert found.synthesis == RESULT.synthesis
    assert found.images == RESULT.images
    assert found.equalized == RESULT.equalized


@pytest.mark.parametrize("content", ["", "[]", '{"images": {}}', "[" * 100_000])
def test_a_report_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match="is not a report"):
        load_report(tmp_path / "report.json")


def test_a_batch_shows_networks_without_a_top1() -> None:
    outputs = Agreement(top1=None, sqnr_db=20.0, count=16, outputs={"boxes": 20.0, "scores": 30.0})
    run = run_of("detector", dataclasses.replace(RESULT, agreement=outputs).to_dict())
    text = shown(render_batch({"runs": [dataclasses.asdict(run)], "failures": []}, Path("out")))
    assert re.search(r"detector +W8A8 +1 +- +- +2\.00 +15\.5", text)
