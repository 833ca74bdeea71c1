"""Batches that fit into memory."""

import subprocess
import sys

import psutil
import pytest
import torch

from dffg.config import SynthesisConfig
from dffg.errors import InputError
from dffg.machine.device import is_out_of_memory
from dffg.synthesis.fitting import bytes_per_image, fitting
from tests.networks import captured


def test_an_image_takes_what_all_results_take():
    network = captured("conv")
    sizes = []

    class Meter(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor):
                sizes.append(result.nbytes)
            return result

    Meter(network.module).run(torch.zeros(1, *network.spec.shape))
    assert bytes_per_image(network) == sum(sizes)


@pytest.mark.parametrize(("images", "expected"), [(16, 16), (15.9, 8), (4, 4), (1, 1)])
def test_the_batch_is_halved_until_it_fits(images, expected):
    network = captured("conv")
    config = SynthesisConfig(batch_size=16, steps=8, seed=3)
    fitted = fitting(network, config, int(images * bytes_per_image(network)))
    assert fitted.batch_size == expected
    assert (fitted.steps, fitted.seed, fitted.step_size) == (8, 3, config.step_size)


def test_an_image_that_does_not_fit_is_refused_with_what_to_do():
    network = captured("conv")
    with pytest.raises(InputError, match="--memory-limit"):
        fitting(network, SynthesisConfig(), bytes_per_image(network) - 1)


def test_without_a_limit_what_is_available_is_used():
    network = captured("conv")
    assert psutil.virtual_memory().available > 16 * bytes_per_image(network)
    assert fitting(network, SynthesisConfig(batch_size=16)).batch_size == 16


_ALLOCATE = """
import resource, torch
from dffg.machine.device import is_out_of_memory
torch.zeros(1)
resource.setrlimit(resource.RLIMIT_AS, (2**20, 2**20))
try:
    torch.zeros(2**32)
except Exception as error:
    raise SystemExit(0 if is_out_of_memory(error) else repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux")
def test_a_real_failure_to_allocate_is_recognised():
    finished = subprocess.run([sys.executable, "-c", _ALLOCATE], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


_RUN = """
import resource, numpy, onnxruntime
from onnx import TensorProto, helper
from dffg.machine.device import is_out_of_memory
from dffg.export.onnxruntime import session
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
sizes = [helper.make_tensor("size", TensorProto.INT64, [1], [2**33])]
graph = helper.make_graph([helper.make_node("Expand", ["x", "size"], ["y"])], "large", values[:1], values[1:], sizes)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
opened = session(model.SerializeToString(), sparing=SPARING)
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # enough for everything else
try:
    opened.run(None, {"x": numpy.ones(1, numpy.float32)})
except Exception as error:
    raise SystemExit(0 if is_out_of_memory(error) else repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux")
@pytest.mark.parametrize("sparing", ["True", "False"])
def test_a_failure_of_the_runtime_to_allocate_is_recognised(sparing):
    code = _RUN.replace("SPARING", sparing)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_other_errors_are_not():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
