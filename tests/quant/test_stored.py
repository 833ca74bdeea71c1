import numpy as np
import pytest
import torch

from dffg.errors import InputError
from dffg.quant.stored import load_parameters, save_parameters, tensors_of
from tests.quant.test_reconstruct import start


@pytest.mark.parametrize("name", ["conv", "inverted-residual", "linear"])
def test_what_is_written_comes_back(name, tmp_path):
    module, parameters = start(name)
    save_parameters(parameters, tmp_path / "parameters.npz")
    found = load_parameters(tmp_path / "parameters.npz", module)
    before, after = tensors_of(parameters), tensors_of(found)
    assert list(before) == list(after)
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        assert torch.equal(value, after[key])
    for key, layer in parameters.layers.items():
        assert (layer.bias is None) == (found.layers[key].bias is None)
        assert found.layers[key].qparams.axis == layer.qparams.axis == 0
    for key, qparams in parameters.activations.items():
        assert found.activations[key].axis is None
        assert found.activations[key].bits == qparams.bits


def test_parameters_of_another_network_are_refused(tmp_path):
    save_parameters(start("conv")[1], tmp_path / "parameters.npz")
    with pytest.raises(InputError, match="another network"):
        load_parameters(tmp_path / "parameters.npz", start("residual")[0])


@pytest.mark.parametrize("content", [b"", b"not a file of arrays"])
def test_a_file_that_cannot_be_read_says_so(content, tmp_path):
    (tmp_path / "parameters.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read what was decided: .* is not a readable \.npz file: .*; quan"):
        load_parameters(tmp_path / "parameters.npz", start("conv")[0])


def test_an_array_that_is_missing_is_named(tmp_path):
    module, parameters = start("conv")
    kept = {name: value.numpy() for name, value in tensors_of(parameters).items() if not name.endswith("/scale")}
    np.savez(tmp_path / "parameters.npz", **kept)
    with pytest.raises(InputError, match=r"its arrays are not those that quantize writes \(no 'scale'\); quantize"):
        load_parameters(tmp_path / "parameters.npz", module)


def test_other_arrays_are_no_parameters(tmp_path):
    np.savez(tmp_path / "parameters.npz", images=np.zeros(3))
    with pytest.raises(InputError, match="cannot read"):
        load_parameters(tmp_path / "parameters.npz", start("conv")[0])
