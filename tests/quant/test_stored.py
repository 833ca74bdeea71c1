import numpy as np
import pytest
import torch

from dffg.config import QuantizationConfig
from dffg.errors import InputError
from dffg.quant.decide import decide
from dffg.quant.stored import load_parameters, save_parameters, tensors_of
from dffg.targets import ONNXRUNTIME, TENSORRT
from tests.networks import captured, inputs
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


@pytest.mark.parametrize(("made_for", "read_for", "wanted"), [(0, 1, "signed"), (1, 0, "unsigned")])
def test_integers_of_another_sign_than_the_runtime_takes_are_refused(made_for, read_for, wanted, tmp_path):
    targets = ONNXRUNTIME, TENSORRT
    config = QuantizationConfig(target=targets[made_for].name)
    decided = decide(captured("conv"), [inputs((3, 16, 16), 4)], config)
    save_parameters(decided.parameters, tmp_path / "parameters.npz")
    name = targets[read_for].name
    with pytest.raises(
        InputError, match=rf"other integers than {name} takes, which are {wanted}; .* \(--target {name}\)"
    ):
        load_parameters(tmp_path / "parameters.npz", decided.float_module, targets[read_for])
    load_parameters(tmp_path / "parameters.npz", decided.float_module, targets[made_for])


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


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("scale", lambda scale: 0 * scale, "a scale that is no positive number"),
        ("scale", lambda scale: scale * np.nan, "a scale that is no positive number"),
        ("scale", lambda scale: scale.astype(np.int32) + 1, "a scale that is no positive number"),
        ("scale", lambda scale: scale.reshape(-1)[:1].repeat(2), "no integer as a zero point for every scale"),
        ("zero_point", lambda zero_point: zero_point + np.float32(0.5), "no integer as a zero point for every scale"),
        ("limits", lambda limits: limits[::-1].copy(), "limits that are no two integers"),
        ("limits", lambda limits: limits + 0.5, "limits that are no two integers"),
        ("levels", lambda levels: levels.astype(np.float32), "integers out of range"),
        ("levels", lambda levels: levels.astype(np.int32) + 1000, "integers out of range"),
        ("levels", lambda levels: levels.astype(np.uint64) % 100, "integers out of range"),
        ("zero_point", lambda zero_point: zero_point.astype(np.uint64), "no integer as a zero point for every scale"),
        ("levels", lambda levels: levels[1:], "no scale for every output"),
        ("bias", lambda bias: bias[1:], "no bias for every output"),
        ("bias", lambda bias: bias * np.inf, "no bias for every output"),
    ],
)
def test_arrays_that_nobody_can_compute_with_are_refused(entry, change, message, tmp_path):
    module, parameters = start("conv")
    arrays = {name: value.numpy() for name, value in tensors_of(parameters).items()}
    name = next(name for name in arrays if name.startswith("layer/") and name.endswith(f"/{entry}"))
    np.savez(tmp_path / "parameters.npz", **{**arrays, name: change(arrays[name])})
    with pytest.raises(InputError, match=rf"its arrays are not those that quantize writes \(({message})\)"):
        load_parameters(tmp_path / "parameters.npz", module)


def test_other_arrays_are_no_parameters(tmp_path):
    np.savez(tmp_path / "parameters.npz", images=np.zeros(3))
    with pytest.raises(InputError, match="cannot read"):
        load_parameters(tmp_path / "parameters.npz", start("conv")[0])
