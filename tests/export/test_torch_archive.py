"""Archives of torch.export, loaded with nothing but torch."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dffg.config import QuantizationConfig
from dffg.errors import ExportError, InputError
from dffg.export.torch_archive import RUNTIME, count_kernels, open_file, read_spec, watch, write, write_float
from dffg.export.verification import match_simulation
from dffg.graph.captured import capture
from dffg.quant.decide import simulate
from tests.export import FLOAT_OPERATIONS, MIDDLES, SPEC, exported, folder, normalized
from tests.networks import randomize

NAME = "residual"


@cache
def written(name: str) -> Path:
    path = folder() / f"archive-{name}.pt2"
    write(exported(name).quantized, SPEC, path)
    return path


@pytest.mark.parametrize("name", [*MIDDLES, *FLOAT_OPERATIONS])
def test_computes_exactly_what_was_decided(name):
    quantized, images = exported(name).quantized, normalized(8, seed=9)
    found = match_simulation(quantized, written(name), images, RUNTIME)
    assert (found.equal_share, found.max_abs_difference_in_steps, found.output_error, found.top1) == (1, 0, 0, 1)
    with torch.no_grad():
        answer, expected = open_file(written(name)).run(images.numpy()), quantized.module(images).numpy()
    # End to end a tie may fall otherwise, in one image of eight.
    assert (answer == expected).all(1).sum() >= len(images) - 1


@pytest.mark.parametrize("bits", ["W2A8", "W4A4", "W6A3"])
def test_fewer_bits_are_exact_too(bits, tmp_path):
    model = randomize(MIDDLES["depthwise"](), seed=3)
    quantized = simulate(capture(model, spec=SPEC), [normalized(16)], QuantizationConfig(bits=bits, target="torch"))
    write(quantized, SPEC, tmp_path / "model.pt2")
    found = match_simulation(quantized, tmp_path / "model.pt2", normalized(8, seed=9), RUNTIME)
    assert (found.equal_share, found.output_error) == (1, 0)


def test_loads_in_a_process_that_has_only_torch():
    images = normalized(3, seed=9)
    with torch.no_grad():
        expected = exported(NAME).quantized.module(images)
    torch.save(images, folder() / "images.pt")
    script = (
        "import sys, torch; inputs = torch.load(sys.argv[2], weights_only=True); "
        "print(torch.export.load(sys.argv[1]).module()(inputs).detach().double().sum().item()); "
        "assert not any(name.partition('.')[0] == 'dffg' for name in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", script, str(written(NAME)), str(folder() / "images.pt")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(finished.stdout) == float(expected.double().sum())


def test_weights_are_stored_as_integers_and_float_weights_are_not():
    stored = torch.export.load(written(NAME)).state_dict
    weights = {name: value for name, value in stored.items() if name.endswith("_weight")}
    assert len(weights) == 3
    assert all(value.dtype == torch.int8 for value in weights.values())
    floats = [name for name, value in stored.items() if value.is_floating_point()]
    assert all(name.endswith("_scale") for name in floats)


def test_every_product_is_computed_in_float():
    kernels = count_kernels(written("concat"))
    assert (kernels.integer, kernels.float) == (0, 4)
    assert kernels.other["aten.cat.default"] == 1


def test_float_archives_compute_the_float_network(tmp_path):
    images = normalized(4, seed=9)
    write_float(exported(NAME).quantized.float_module, SPEC, tmp_path / "float.pt2")
    with torch.no_grad():
        expected = exported(NAME).model(images).numpy()
    np.testing.assert_allclose(open_file(tmp_path / "float.pt2").run(images.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["weight", "weight_scale", "bias", "zero_point"])
def test_changed_integers_and_scales_are_found(part, tmp_path):
    program = torch.export.load(written(NAME))
    for name, value in program.state_dict.items():
        if name.endswith(part) and not (part == "zero_point" and value.dtype != torch.uint8):
            value.copy_(value.clamp(max=100) + 3 if part in ("weight", "zero_point") else value * 1.5)
    torch.export.save(program, tmp_path / "changed.pt2")
    assert not match_simulation(exported(NAME).quantized, tmp_path / "changed.pt2", normalized(8), RUNTIME).holds


def test_watching_shows_the_integers():
    images = normalized(2, seed=9)
    output, values = watch(exported(NAME).quantized, written(NAME))(images.numpy())
    assert list(values) == [tensor.name for tensor in exported(NAME).quantized.tensors]
    scale, zero_point = (exported(NAME).quantized.module.get_buffer(f"x_{part}") for part in ("scale", "zero_point"))
    expected = np.clip(np.rint(images.numpy() / np.float32(scale)) + int(zero_point), 0, 255)
    np.testing.assert_array_equal(values["x"], expected)
    assert values["x"].dtype == np.uint8
    np.testing.assert_array_equal(output, open_file(written(NAME)).run(images.numpy()))


def test_the_file_says_what_its_input_is(tmp_path):
    assert read_spec(written(NAME)) == SPEC
    torch.export.save(torch.export.load(written(NAME)), tmp_path / "other.pt2")
    assert read_spec(tmp_path / "other.pt2") is None


def test_what_is_no_archive_is_explained(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"model\.pt2 is not a readable torch\.export archive"):
        open_file(tmp_path / "model.pt2")


def test_a_network_that_cannot_be_exported_is_explained(tmp_path):
    fixed = exported(NAME).quantized.float_module
    with pytest.raises(ExportError, match=r"cannot be written with torch\.export"):
        write_float(fixed, SPEC.__class__(shape=(4, 8, 8)), tmp_path / "model.pt2")


def test_a_size_cannot_be_reached_with_widths():
    with pytest.raises(InputError, match="files for torch store every weight in 8 bits"):
        QuantizationConfig(bits="mixed", budget="size=0.5x", target="torch")
    assert QuantizationConfig(bits="mixed", budget="bits=4", target="torch").candidates == (2, 3, 4, 5, 6, 8)
