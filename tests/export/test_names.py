from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dffg.export.names import make_unique_
from dffg.export.onnx import write_float, write_quantized
from dffg.export.runtimes import runtime_of
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.quant.decide import simulate
from dffg.spec import ImageSpec, JointSpec
from tests.export import layer
from tests.networks import inputs, randomize


class Named(nn.Module):
    """Outputs called as the input, as an operator, as what quantizes another, and as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.scores = layer(3, 8), nn.Conv2d(8, 3, 1), nn.Linear(8, 5)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.stem(input)
        scores = self.scores(x.mean((2, 3)))
        return {"input": self.head(x), "conv2d": scores, "relu_quantized": 2 * scores, "conv2d_1_weight": -scores}


class Two(nn.Module):
    """Each output is called as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = layer(3, 8), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = self.stem(image) * depth
        return {"image": self.head(x), "depth": x}


PICTURE = ImageSpec(shape=(3, 8, 8))
NETWORKS = {
    "one": (Named, PICTURE, ["input"], ["input_1", "conv2d", "relu_quantized_1", "conv2d_1_weight"]),
    "two": (Two, JointSpec.of([PICTURE, ImageSpec(shape=(1, 8, 8))]), ["image", "depth"], ["image_1", "depth_1"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_output_may_be_called_as_an_input_or_an_operator(tmp_path: Path, name: str) -> None:
    make, spec, given, answers = NETWORKS[name]
    path, images = tmp_path / "model.onnx", inputs(spec.shape, 8)
    quantized = simulate(capture(randomize(make()), spec=spec), [images])
    write_quantized(quantized, spec, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == given
    assert [entry.name for entry in session.get_outputs()] == answers
    assert match_simulation(quantized, path, images).equal_share == 1
    pytest.importorskip("openvino")
    assert match_simulation(quantized, path, images, runtime_of("openvino")).equal_share == 1


def test_a_float_file_answers_as_the_network_does(tmp_path: Path) -> None:
    captured, images = capture(randomize(Named()), spec=PICTURE), inputs(PICTURE.shape, 2)
    write_float(captured.module, PICTURE, tmp_path / "float.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "float.onnx", providers=["CPUExecutionProvider"])
    answer = np.concatenate([part.reshape(2, -1) for part in session.run(None, {"input": images.numpy()})], 1)
    with torch.no_grad():
        np.testing.assert_allclose(answer, captured.module(images).numpy(), atol=1e-5)


def test_a_number_behind_a_name_makes_no_other_name_twice() -> None:
    nodes = [onnx_ir.node("Relu", [onnx_ir.Value(name="x")]) for _ in range(5)]
    for node, name in zip(nodes, ["a", "a", "a_1", "a", "b"]):
        node.outputs[0].name = name
    graph = onnx_ir.Graph(nodes[0].inputs, [nodes[4].outputs[0]], nodes=nodes)
    make_unique_(graph, first=[nodes[3].outputs[0]])
    assert [node.outputs[0].name for node in nodes] == ["a_2", "a_3", "a_1", "a", "b"]
