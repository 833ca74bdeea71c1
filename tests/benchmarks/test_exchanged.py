import numpy as np
import pytest
import torch
from benchmarks.exchanged import Exchanged, quantizer

from benchmarks import exchanged as module
from dffg.export.onnx import write_quantized
from dffg.export.onnxruntime import run
from dffg.quant.decide import simulate
from tests.benchmarks.small import small_benchmark


@pytest.fixture(scope="module")
def benchmark_network():
    return small_benchmark()


@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W8A6"])
def test_exchanged_numbers_answer_as_a_file_written_for_them(benchmark_network, tmp_path, bits, monkeypatch):
    """The second set of images goes into the file that was made for the first. The arena observes in float."""
    monkeypatch.setattr("dffg.quant.calibrate.has_fast_bfloat16", lambda device: False)
    inputs = list(benchmark_network.evaluation.batches(16))
    fixed = Exchanged(benchmark_network)
    written = tmp_path / "model.onnx"
    for seed, ranges in ((0, "minmax"), (1, "minmax"), (1, "mse")):
        images = benchmark_network.real_images(32, seed) * (1 + seed)
        answer = fixed.answer(fixed.observe(images), quantizer(bits, ranges), inputs)
        batches = torch.split(torch.from_numpy(images), module.BATCH)
        write_quantized(simulate(fixed.captured, batches, quantizer(bits, ranges)), benchmark_network.spec, written)
        assert np.array_equal(answer, np.concatenate(list(run(written, inputs))))


def test_other_images_give_another_answer(benchmark_network):
    inputs = list(benchmark_network.evaluation.batches(16))
    fixed = Exchanged(benchmark_network)
    answers = [
        fixed.answer(fixed.observe(factor * benchmark_network.real_images(32, 0)), quantizer("W8A8", "minmax"), inputs)
        for factor in (1, 3)
    ]
    assert not np.array_equal(*answers)


def test_the_float_answer_is_that_of_the_model(benchmark_network):
    inputs = list(benchmark_network.evaluation.batches(16))
    with torch.no_grad():
        expected = np.concatenate([benchmark_network.model(torch.from_numpy(batch)).numpy() for batch in inputs])
    assert np.allclose(Exchanged(benchmark_network).float_answer(inputs), expected, atol=1e-4)
