"""The examples run where their tool is installed; of the others, what the tool is given has the form it takes."""

from __future__ import annotations

import ast
import inspect
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from dffg import handover
from dffg.evaluation.metrics import sqnr_db
from dffg.export.onnx import write_float
from dffg.export.onnxruntime import run
from dffg.graph.captured import capture
from dffg.graph.fold import fold_batch_norms
from dffg.images import SyntheticSet
from dffg.quant.placement import prepare
from dffg.spec import ImageSpec
from tests import commands
from tests.networks import randomize
from tests.test_images import make_set

FOLDER = Path(__file__).parents[1] / "examples"
SPEC = ImageSpec(shape=(3, 16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
QUICK = ("--images", "8", "--steps", "4")


def small_mobile() -> nn.Sequential:
    """A convolution, a depthwise one and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, its ONNX file, and images in the shape it takes."""
    folder = tmp_path_factory.mktemp("examples")
    model = randomize(small_mobile())
    write_float(prepare(fold_batch_norms(capture(model, spec=SPEC))), SPEC, folder / "float.onnx")
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "model.pt2")
    make_set(SPEC, count=16).save(folder / "images.npz")
    return folder


@pytest.mark.parametrize(
    ("script", "tool"), [("onnxruntime_quantize_static.py", "onnxruntime"), ("nncf_onnx.py", "nncf")]
)
def test_an_onnx_file_is_quantized(here, script, tool):
    pytest.importorskip(tool, reason=f"{tool} is not installed")
    commands.run([sys.executable, str(FOLDER / script), "images.npz", "float.onnx", f"{tool}.onnx"], here)
    graph = onnx.load(here / f"{tool}.onnx").graph
    integers = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    first, second, last = (node.input for node in graph.node if node.op_type in ("Conv", "Gemm"))
    assert {*first[:2], *second[:2], last[1]} <= integers
    assert_one_range_per_tensor(graph)
    float_answer, answer = (
        next(run(here / name, [SyntheticSet.load(here / "images.npz").inputs]))
        for name in ("float.onnx", f"{tool}.onnx")
    )
    assert 15 < sqnr_db(float_answer, answer) < 60


def assert_one_range_per_tensor(graph: onnx.GraphProto) -> None:
    """Of activations, also of those that a depthwise layer reads."""
    sizes = {stored.name: math.prod(stored.dims) for stored in graph.initializer}
    scales = [node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in sizes]
    assert [sizes[name] for name in scales] == [1] * len(scales)


def test_an_openvino_model_is_quantized(here):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    commands.run([sys.executable, str(FOLDER / "nncf_openvino.py"), "images.npz", "float.onnx", "int8.xml"], here)
    operators = openvino.Core().read_model(here / "int8.xml").get_ops()
    quantizers = [node for node in operators if node.get_type_name() == "FakeQuantize"]
    # Of activations, whose batch is free; most weights are stored as integers.
    ranges = [node.input_value(1) for node in quantizers if node.input_value(0).get_partial_shape().is_dynamic]
    # One for the input of every layer at least, and of one number.
    assert len(ranges) >= 3
    assert {math.prod(value.get_shape()) for value in ranges} == {1}


@pytest.mark.parametrize(
    ("script", "shape"), [("modelopt.sh", (8, 3, 16, 16)), ("hailo.sh", (8, 16, 16, 3)), ("onnx2tf.sh", (8, 16, 16, 3))]
)
def test_a_shell_script_gives_its_tool_an_array(here, script, shape):
    """The tools cannot be installed beside dffg; theirs is the layout, and that the array is named to them."""
    text = (FOLDER / script).read_text()
    subprocess.run(["sh", "-n", FOLDER / script], check=True)
    (command,) = [line for line in text.splitlines() if line.startswith("dffg ")]
    name = f"{script}.npy"
    commands.run([*shlex.split(command.replace("$1", "model.pt2").replace("calib.npy", name)), *QUICK], here)
    values = np.load(here / name)
    assert (values.dtype, values.shape) == (np.float32, shape)
    assert text.count("calib.npy") == 2


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_what_an_example_asks_of_dffg_exists(script):
    """Of tools that are not installed, too: every `handover.NAME(...)` is a function that takes these arguments."""
    calls = [node for node in ast.walk(ast.parse((FOLDER / script).read_text())) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("handover.")]
    assert ours or script == "rknn_toolkit2.py"
    for call in ours:
        keywords = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(getattr(handover, call.func.attr)).bind(*call.args, **keywords)


def test_pictures_and_their_list_are_what_rknn_reads(here):
    commands.run(["dffg", "synthesize", "model.pt2", "--out", "pictures", *QUICK], here)
    names = (here / "pictures" / "list.txt").read_text().split()
    assert len(names) == 8
    for name in names:
        with Image.open(here / "pictures" / name) as picture:
            assert (picture.size, picture.mode) == ((16, 16), "RGB")


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.iterdir()))
def test_an_example_is_short(script):
    lines = (FOLDER / script).read_text().splitlines()
    if script.endswith(".py"):
        lines = ast.unparse(ast.Module(ast.parse("\n".join(lines)).body[1:], [])).splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) < 20
