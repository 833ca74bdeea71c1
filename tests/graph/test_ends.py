"""Networks of several inputs and outputs, from capture to file."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dffg.cli import main as cli
from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import CaptureError, InputError
from dffg.evaluation.data import load_data
from dffg.export.runtimes import RUNTIMES, runtime_of
from dffg.export.verification import by_output, match_simulation
from dffg.graph.captured import Captured, capture
from dffg.graph.ends import columns, join, split, split_ends
from dffg.images import SyntheticSet
from dffg.pipeline.evaluate import evaluate
from dffg.pipeline.steps import quantize
from dffg.quant.decide import simulate
from dffg.quant.placement import prepare
from dffg.spec import ImageSpec, JointSpec
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import randomize

PICTURE = ImageSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,))
METADATA = ImageSpec(shape=(5,), bounds=(-3.0, 2.0))
SPEC = JointSpec.of([PICTURE, METADATA])


class Detector(nn.Module):
    """A picture and a vector in; a dictionary of scores and, of very different size, a list of boxes and features."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(8))
        self.vector = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.classes, self.boxes = nn.Linear(16, 4), nn.Linear(16, 6)

    def forward(self, picture: Tensor, metadata: Tensor) -> dict[str, object]:
        x = torch.cat([self.tower(picture).flatten(1), self.vector(metadata)], 1)
        return {"scores": 1000 * self.classes(x), "found": [self.boxes(x).reshape(-1, 3, 2), x]}


NAMES = ["scores", "found.0", "found.1"]


def detector() -> nn.Module:
    return randomize(Detector())


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture(detector(), spec=SPEC)


def drawn(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=(count, *part.shape)).astype(np.float32) for part in SPEC.inputs]


def returned(parts: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        found = detector()(*map(torch.from_numpy, parts))
    return [value.numpy() for value in (found["scores"], *found["found"])]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_graph_gives_all_outputs_end_to_end(captured: Captured, count: int) -> None:
    parts = drawn(count)
    answer = captured.module(torch.from_numpy(SPEC.join(parts)))
    np.testing.assert_allclose(answer, join(returned(parts)), rtol=1e-4, atol=1e-5)
    assert columns(captured.module) == dict(zip(NAMES, [slice(0, 4), slice(4, 10), slice(10, 26)], strict=True))
    assert [norm.name for norm in captured.batch_norms] == ["tower.1", "vector.1"]


def test_the_ends_come_back_in_their_order(captured: Captured) -> None:
    parts, module = drawn(3), split_ends(captured.module)
    assert [node.name for node in module.graph.nodes if node.op == "placeholder"] == ["picture", "metadata"]
    for found, expected in zip(module(*map(torch.from_numpy, parts)), returned(parts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_exported_program_of_several_inputs_is_captured_like_its_model(captured: Captured) -> None:
    batch = {0: Dim.DYNAMIC}
    example = tuple(torch.zeros(2, *part.shape) for part in SPEC.inputs)
    made = capture(torch.export.export(detector(), example, dynamic_shapes=(batch, batch)))
    x = torch.from_numpy(SPEC.join(drawn(4)))
    assert [part.shape for part in made.spec.inputs] == [(3, 8, 8), (5,)]  # type: ignore[attr-defined]
    torch.testing.assert_close(made.module(x), captured.module(x))
    wrong = JointSpec.of([METADATA, PICTURE])
    with pytest.raises(InputError, match="takes inputs of shape 3x8x8/5, not 5/3x8x8"):
        capture(torch.export.export(detector(), example, dynamic_shapes=(batch, batch)), spec=wrong)


def test_shapes_or_examples_are_enough() -> None:
    for arguments in (
        {"input_shape": [(3, 8, 8), (5,)]},
        {"example_input": (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5))},
    ):
        made = capture(detector(), **arguments)  # type: ignore[arg-type]
        assert made.spec.shape == (3 * 8 * 8 + 5,)
        assert "assuming pixels" in made.notes[0]


class Returns(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.norm, self.answer = nn.BatchNorm2d(3), answer

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.answer(self.norm(x), y)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, y: x, "does not use its input y; leave it out"),
        (lambda x, y: {"a": x, "b": [y, 3]}, r"output b\.1 of the network is no tensor"),
        (lambda x, y: (x + y, torch.zeros(4)), "output 1 of the network has no batch"),
    ],
)
def test_what_cannot_be_joined_is_named(answer: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Returns(answer), input_shape=[(3, 4, 4), (3, 4, 4)])


class Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(10, 4), nn.BatchNorm1d(4)

    def forward(self, values: Tensor, ids: Tensor) -> Tensor:
        return self.norm(values) + self.table(ids)


def test_inputs_of_whole_numbers_are_refused_with_what_to_do() -> None:
    model, batch = randomize(Indexed()), {0: Dim.DYNAMIC}
    with pytest.raises(InputError, match=r"fails on an input of shape 4/1(.|\n)*float32; give a network that begins"):
        capture(model, input_shape=[(4,), (1,)])
    given = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    program = torch.export.export(model, given, dynamic_shapes=(batch, batch))
    with pytest.raises(CaptureError, match=r"input ids is torch.int64. Inputs are float32; give a network that begins"):
        capture(program)


class Starred(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.norm, self.forward = nn.BatchNorm1d(4), self.first_named if named else self.none_named

    def first_named(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.norm(x) + sum(more)

    def none_named(self, *inputs: Tensor) -> Tensor:
        return self.norm(inputs[0]) + sum(inputs[1:])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_forward_with_any_number_of_arguments_is_captured(named: bool, count: int) -> None:
    model = Starred(named).eval()
    made = capture(model, input_shape=[(4,)] * count)
    parts = [torch.rand(5, 4) for _ in range(count)]
    torch.testing.assert_close(made.module(torch.cat(parts, 1)), model(*parts))


def test_a_wrong_number_of_inputs_says_how_they_are_described() -> None:
    with pytest.raises(CaptureError, match=r"does not take one tensor(.|\n)*--input 3x224x224/8"):
        capture(detector(), spec=PICTURE)


def test_what_is_none_is_left_out_and_the_dictionary_of_one_keeps_its_name() -> None:
    made = capture(Returns(lambda x, y: {"out": x + y, "aux": None}), input_shape=[(3, 4, 4), (3, 4, 4)])
    assert columns(made.module) == {}
    assert made.module(torch.zeros(2, 96)).shape == (2, 3, 4, 4)


def test_bounds_and_normalization_are_those_of_every_input() -> None:
    low, high = SPEC.input_bounds()
    assert low.tolist() == [-2.0] * 192 + [-3.0] * 5
    assert high.tolist() == [2.0] * 192 + [2.0] * 5
    pixels = SPEC.join([np.full((2, 3, 8, 8), 0.75, np.float32), np.ones((2, 5), np.float32)])
    assert set(SPEC.normalize(pixels)[:, :192].ravel()) == {1.0}
    np.testing.assert_array_equal(SPEC.denormalize(SPEC.normalize(pixels)), pixels)
    assert ImageSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(SPEC)))) == SPEC


def test_every_input_is_quantized_in_its_own_bounds(captured: Captured) -> None:
    quantized = simulate(captured, [torch.zeros(2, *SPEC.shape)])
    ranges = {layer.name: layer.input_range for layer in quantized.layers}
    assert ranges["tower.0"] == pytest.approx((-2, 2), abs=0.02)
    assert ranges["vector.0"] == pytest.approx((-3, 2), abs=0.02)
    assert not [name for name in quantized.float_operations if "input" in name or "join" in name]


def test_made_inputs_are_legal_saved_by_input_and_found_again(captured: Captured, tmp_path: Path) -> None:
    made = synthesize_set(captured, SynthesisConfig(count=8, batch_size=8))
    low, high = SPEC.input_bounds()
    assert (made.inputs >= low).all()
    assert (made.inputs <= high).all()
    for name in ("made.npz", "made.safetensors"):
        made.save(tmp_path / name)
        loaded = SyntheticSet.load(tmp_path / name)
        np.testing.assert_array_equal(loaded.inputs, made.inputs)
        assert loaded.spec == SPEC
    with np.load(tmp_path / "made.npz") as arrays:
        assert (arrays["input0"].shape, arrays["input1"].shape) == ((8, 3, 8, 8), (8, 5))


def test_real_data_is_read_by_input(tmp_path: Path) -> None:
    pixels, vector = np.full((6, 3, 8, 8), 255, np.uint8), np.ones((6, 5))
    np.savez(tmp_path / "data.npz", input0=pixels, input1=vector, labels=np.arange(6))
    (batch,) = load_data(tmp_path / "data.npz", SPEC, labelled=True).batches()
    np.testing.assert_array_equal(batch, SPEC.join([np.full((6, 3, 8, 8), 2.0), vector]))
    for arrays, message in (
        ({"input0": pixels}, "nothing as input1"),
        ({"input0": pixels, "input1": pixels}, r"shape \(6, 3, 8, 8\) as input1"),
        ({"input0": pixels[:3], "input1": vector}, r"not equally many: \[3, 6\]"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(InputError, match=message):
            load_data(tmp_path / "bad.npz", SPEC, labelled=False)


def test_arrays_are_split_as_they_are_joined() -> None:
    parts = drawn(3)
    again = split(SPEC.join(parts), [part.shape for part in SPEC.inputs])
    assert all(np.array_equal(a, b) for a, b in zip(again, parts, strict=True))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "torch", "executorch"])
def test_files_of_every_target_have_all_ends_and_agree_with_the_simulation(
    captured: Captured, tmp_path: Path, target: str
) -> None:
    if target in ("openvino", "executorch"):
        pytest.importorskip(target, reason=f"{target} is not installed")
    runtime = runtime_of(target)
    images = torch.from_numpy(SPEC.join(drawn(8)))
    quantized = simulate(captured, [images], QuantizationConfig(target=target))
    runtime.write(quantized, SPEC, tmp_path / runtime.file)
    match = match_simulation(quantized, tmp_path / runtime.file, images, runtime)
    assert match.holds
    assert match.top1 is None


def test_the_worst_output_counts() -> None:
    """One that is a thousand times smaller than another would be lost among all numbers."""
    written = np.array([[1000.0, 1.0]], np.float32)
    parts = {"large": slice(0, 1), "small": slice(1, 2)}
    assert [pair[0].tolist() for pair in by_output(parts, written)] == [[[1000.0]], [[1.0]]]
    assert by_output({}, written)[0][0] is written


def test_from_command_to_verified_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = ["quantize", f"{__name__}:detector", "--input", "3x8x8/5", "--mean", "0.5/0", "--std", "0.25/1"]
    arguments += ["--bounds=0:1/-3:2", "--images", "16", "--out", str(out), "--quiet"]
    monkeypatch.setattr(sys, "argv", ["dffg", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("picture", ["batch", 3, 8, 8]),
        ("metadata", ["batch", 5]),
    ]
    assert [entry.name for entry in session.get_outputs()] == NAMES
    made = SyntheticSet.load(out / "images.npz")
    assert made.spec.inputs[1].bounds == (-3.0, 2.0)  # type: ignore[attr-defined]
    parts = SPEC.split(made.inputs)
    answers = session.run(None, {"picture": parts[0], "metadata": parts[1]})
    for answer, expected in zip(answers, returned(parts), strict=True):
        assert answer.shape == expected.shape
        assert np.square(answer - expected).sum() < 0.05 * np.square(expected).sum()
    agreement = json.loads((out / "report.json").read_text())["agreement"]
    assert list(agreement["outputs"]) == NAMES
    assert agreement["sqnr_db"] == min(agreement["outputs"].values())
    assert (agreement["top1"], agreement["broken"]) == (None, None)


@pytest.mark.parametrize("option", [["--mean", "0/0/0"], ["--input", "3x8x8"], ["--bounds", "0:1/0:1/0:1"]])
def test_options_for_another_number_of_inputs_are_refused(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--input": "3x8x8/5", "--mean": "0/0", option[0]: option[1]}
    arguments = [f"{name}={value}" for name, value in given.items()]
    monkeypatch.setattr(sys, "argv", ["dffg", "inspect", f"{__name__}:detector", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert "there are" in capsys.readouterr().err


def test_made_inputs_are_saved_by_input_and_not_as_one_array(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, code in (("made.npz", 0), ("made.npy", 2)):
        arguments = [f"{__name__}:detector", "--input=3x8x8/5", "--images=2", "--steps=4", f"--out={tmp_path / name}"]
        monkeypatch.setattr(sys, "argv", ["dffg", "synthesize", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, (tmp_path / name).exists()) == (code, code == 0)
    assert "has 2 inputs, which do not go into one array; save them as .npz" in capsys.readouterr().err


def test_accuracy_of_several_outputs_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", input0=np.zeros((6, 3, 8, 8)), input1=np.zeros((6, 5)), labels=np.arange(6))
    data = load_data(tmp_path / "data.npz", SPEC, labelled=True)
    with pytest.raises(InputError, match="top-1 is not defined for a network with several outputs"):
        quantize(detector(), tmp_path / "out", spec=SPEC, evaluation=data)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "torch", "executorch"])
def test_a_file_of_several_outputs_has_no_top1(captured: Captured, target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    np.savez(tmp_path / "data.npz", input0=np.zeros((6, 3, 8, 8)), input1=np.zeros((6, 5)), labels=np.arange(6))
    path, runtime = tmp_path / RUNTIMES[target].file, RUNTIMES[target]
    runtime.write_float(prepare(captured.module), SPEC, path)
    with pytest.raises(InputError, match=f"{path.name} has 3 outputs, and top-1 is that of one"):
        evaluate(path, load_data(tmp_path / "data.npz", SPEC, labelled=True))


def test_an_output_of_noise_is_broken() -> None:
    from dffg.pipeline.measure import agreement_of

    expected = np.array([[100.0, 1.0], [50.0, -1.0]], np.float32)
    parts = {"large": slice(0, 1), "small": slice(1, 2)}
    found = agreement_of(expected, expected * np.array([1.001, -1.0], np.float32), parts)
    assert found.broken == "its output small has as much noise as signal"
    assert found.outputs == pytest.approx({"large": 60, "small": -20 * math.log10(2)}, abs=0.01)
