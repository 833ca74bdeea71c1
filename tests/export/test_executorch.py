"""Programs for ExecuTorch, in its runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.digits import SPEC as DIGITS

from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.data import load_data
from dffg.export.executorch import RUNTIME, _in_torch_operators, count_kernels, open_file, write, write_float
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.pipeline.evaluate import evaluate
from dffg.pipeline.steps import quantize
from dffg.quant.decide import simulate
from dffg.quant.operators import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE
from dffg.quant.quantized import Quantized
from tests.export import FLOAT_OPERATIONS, MIDDLES, SPEC, Body, folder, mean_head, normalized
from tests.networks import randomize

pytest.importorskip("executorch", reason="ExecuTorch is not installed; dffg[executorch] brings it.")
CONFIG = QuantizationConfig(target="executorch")
NETWORKS = {
    **MIDDLES,
    **FLOAT_OPERATIONS,
    "linear-bottlenecks": lambda: Body(lambda body, x: mean_head(body, body.depthwise(_inverted_residual(body, x)))),
}
NAME = "residual"


def _inverted_residual(body: Body, x: torch.Tensor) -> torch.Tensor:
    """Between results of convolutions without activation: where a shared dequantization makes a cycle."""
    x = body.left[:2](x)
    return x + body.right[:2](body.depthwise(body.right(x)))


@cache
def quantized(name: str) -> Quantized:
    model = randomize(NETWORKS[name](), seed=len(name))
    return simulate(capture(model, spec=SPEC, name=name), [normalized(16), normalized(16, seed=1)], CONFIG)


@cache
def written(name: str) -> Path:
    path = folder() / f"executorch-{name}.pte"
    write(quantized(name), SPEC, path)
    return path


@pytest.mark.parametrize("name", list(NETWORKS))
def test_computes_what_was_decided_with_integer_kernels(name):
    found = match_simulation(quantized(name), written(name), normalized(8, seed=9), RUNTIME)
    assert found.holds, found
    assert found.top1 >= 7 / 8
    kernels = count_kernels(written(name))
    # XNNPACK computes a BatchNorm that stays by itself as a convolution.
    assert (kernels.integer, kernels.float) == (len(quantized(name).layers), int(name == "batch-norm"))


def test_writing_leaves_the_simulation_as_it_is():
    module = quantized(NAME).module
    before, images = module.code, normalized(2, seed=9)
    translated = _in_torch_operators(module)
    assert module.code == before
    ours = {QUANTIZE, DEQUANTIZE, GLOBAL_AVERAGE_POOL}
    assert not ours & {node.target for node in translated.graph.nodes}
    with torch.no_grad():
        torch.testing.assert_close(translated(images), module(images), rtol=0, atol=0)


def test_float_programs_count_as_float_and_compute_the_float_network(tmp_path):
    path, images = tmp_path / "float.pte", normalized(4, seed=9)
    write_float(quantized("concat").float_module, SPEC, path)
    kernels = count_kernels(path)
    assert (kernels.integer, kernels.float) == (0, 4)
    with torch.no_grad():
        expected = quantized("concat").float_module(images).numpy()
    np.testing.assert_allclose(open_file(path).run(images.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_another_networks_program_does_not_pass():
    model = randomize(MIDDLES[NAME](), seed=99)
    other = simulate(capture(model, spec=SPEC), [normalized(16)], CONFIG)
    assert not match_simulation(other, written(NAME), normalized(8, seed=9), RUNTIME).holds


def test_results_stay_when_the_next_image_is_run():
    run, images = open_file(written(NAME)).run, normalized(3, seed=9).numpy()
    together = run(images)
    assert together.shape == (3, 5)
    np.testing.assert_array_equal(together[0], run(images[:1])[0])
    assert not np.array_equal(together[0], together[2])


def test_the_order_of_a_batch_in_memory_does_not_matter():
    run, images = open_file(written(NAME)).run, normalized(3, seed=9).numpy()
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(run(channels_last), run(images))


@pytest.mark.parametrize("content", [b"rubbish", b""])
def test_what_is_no_program_is_explained(content, tmp_path):
    (tmp_path / "model.pte").write_bytes(content)
    with pytest.raises(InputError, match="ExecuTorch cannot load"):
        open_file(tmp_path / "model.pte")


@pytest.mark.parametrize("bits", ["W4A8", "W8A4"])
def test_only_eight_bits_are_written(bits):
    with pytest.raises(InputError, match=r"executorch cannot run .* choose 8 or more"):
        QuantizationConfig(bits=bits, target="executorch")


def test_the_whole_road(digits, tmp_path):
    quick = SynthesisConfig(count=32, batch_size=16, steps=8, seed=1)
    np.savez(tmp_path / "digits.npz", features=digits.images[:200], labels=digits.labels[:200])
    data = load_data(tmp_path / "digits.npz", DIGITS, labelled=True)
    result = quantize(
        digits.model, tmp_path / "out", spec=DIGITS, synthesis=quick, quantization=CONFIG, evaluation=data
    )
    assert result.verified
    assert (result.kernels.integer, result.kernels.float) == (5, 0)
    assert result.accuracy.quantized_top1 > 90
    assert evaluate(tmp_path / "out" / "model.pte", data).top1 == pytest.approx(result.accuracy.quantized_top1)
