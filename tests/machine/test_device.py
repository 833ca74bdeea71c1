"""Work on another device than the CPU: imagined everywhere, real where there is one."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch
from torch._subclasses.fake_tensor import FakeTensorMode

from dffg.config import (
    GENERATORS,
    NOISES,
    VARIABILITIES,
    FinetuneConfig,
    ReconstructionConfig,
    SynthesisConfig,
)
from dffg.errors import InputError
from dffg.graph.captured import Captured, capture
from dffg.graph.nodes import moved
from dffg.machine import device
from dffg.machine.device import HOST, device_named, device_of, has_fast_bfloat16
from dffg.quant.finetune import finetune
from dffg.quant.reconstruct import reconstruct
from dffg.spec import ImageSpec
from dffg.synthesis.generators import chain_of
from dffg.synthesis.patches import PatchObjective
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import NETWORKS, captured, inputs
from tests.quant.test_learned import decided

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Imagined(FakeTensorMode):
    """Tensors without values, for whose place torch's rules hold: operands on two devices raise.

    Where Python asks for a number it is told 1/2, 1 or False. What torch only computes, and does not know the shape of,
    is said here.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return 0.5 if dtype.is_floating_point else False if dtype is torch.bool else 1
        if func is aten.batch_norm_update_stats.default:
            return tuple(args[0].new_empty(args[0].shape[1]) for _ in range(2))
        return super().__torch_dispatch__(func, types, args, kwargs or {})


@contextmanager
def imagined():
    with functorch.patch(fake_tensor_allow_meta=True), Imagined(allow_non_fake_inputs=True):
        yield


# torch cannot imagine genie's: a module whose weights move.
WALKS = [(name, {}) for name in GENERATORS if name not in (*NOISES, "genie")]
WALKS += [("dffg", {"variability": name}) for name in VARIABILITIES]
WALKS += [("dffg", {"lookahead": True, "statistics": "image"}), ("dffg", {"start": "pictures"})]


def walked(network: Captured, generator: str, options: dict) -> list:
    config = SynthesisConfig(generator=generator, steps=3, batch_size=4, count=8, **options)
    return list(chain_of(network, config)(0))


@pytest.mark.parametrize(("generator", "options"), WALKS)
@pytest.mark.parametrize("name", ["conv", "residual"])
def test_a_chain_stays_where_the_network_is(name, generator, options):
    network = captured(name)
    with imagined():
        visits = walked(network.on(ELSEWHERE), generator, options)
    assert [visit.images.device for visit in visits] == 3 * [ELSEWHERE]


def test_tensors_in_two_places_are_noticed():
    network = captured("conv")
    with imagined(), pytest.raises(RuntimeError, match="same device"):
        network.on(ELSEWHERE).module(inputs((3, 8, 8)))


class Attention(nn.Module):
    """One attention over 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x):
        patches = self.norm(x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 16, 12))
        return self.head(nn.functional.scaled_dot_product_attention(patches, patches, patches).mean(1))


def test_patches_are_compared_where_the_network_is():
    network = capture(Attention(), spec=ImageSpec(shape=(3, 8, 8)))
    with imagined():
        objective = PatchObjective(network.on(ELSEWHERE).module, network.spec)
        assert objective(inputs((3, 8, 8)).to(ELSEWHERE)).device == ELSEWHERE


@pytest.mark.parametrize("name", ["conv", "inverted-residual"])
def test_blocks_and_networks_learn_where_they_are_and_the_result_comes_back(name):
    float_module, parameters = decided(name)
    with imagined():
        images, there = inputs(NETWORKS[name][1], 8), moved(float_module, ELSEWHERE)
        config = ReconstructionConfig(iterations=2, batch_size=4, bfloat16=False)
        parameters = reconstruct(there, parameters, images, config, lambda record: None)
        parameters = finetune(there, parameters, images, FinetuneConfig(iterations=2, batch_size=4, boundary=0.5))
    tensors = [part for layer in parameters.layers.values() for part in (layer.levels, layer.qparams.scale, layer.bias)]
    tensors += [qparams.scale for qparams in parameters.activations.values()]
    assert {tensor.device for tensor in tensors if tensor is not None} == {HOST}


class MakesTensors(nn.Module):
    """A network that makes a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x + torch.arange(x.shape[-1] * x.shape[0])[: x.shape[-1]]


def test_what_a_network_makes_itself_is_made_there():
    network = capture(MakesTensors(), spec=ImageSpec(shape=(3, 8, 8)))
    assert any("device" in node.kwargs for node in network.module.graph.nodes)
    with imagined():
        there = network.on(ELSEWHERE)
        assert there.module(inputs((3, 8, 8)).to(ELSEWHERE)).device == ELSEWHERE == there.device
    assert [norm.name for norm in there.batch_norms] == [norm.name for norm in network.batch_norms]


def test_a_network_that_is_there_is_not_copied():
    module = captured("conv").module
    assert moved(module, HOST) is module
    assert device_of(nn.Identity()) == device_of(module) == HOST


def test_a_device_is_found_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_named("auto") == device_named("cpu") == HOST
    with pytest.raises(InputError, match="torch finds 0"):
        device_named("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("auto") == device_named("cuda") == torch.device("cuda", 0)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="torch finds 2"):
        device_named("cuda:2")


@pytest.mark.parametrize("name", ["", "tpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cuda:99999"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="unknown device"):
        device_named(name)


def test_bfloat16_is_fast_where_the_device_says_so(monkeypatch):
    has_fast_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False}, raising=False)
    assert not has_fast_bfloat16(HOST)
    assert has_fast_bfloat16(torch.device("cuda", 0))
    has_fast_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert has_fast_bfloat16(HOST)
    has_fast_bfloat16.cache_clear()


def test_a_card_is_described_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "Some Card")
    assert device.described(torch.device("cuda", 0)) == "cuda:0 (Some Card)"
    assert device.described(HOST) == "cpu"


@needs_cuda
@pytest.mark.parametrize(("generator", "options"), WALKS)
def test_cuda_walks_as_the_cpu(generator, options):
    """The first visit has the same images, and the same loss but for rounding."""
    there, here = (walked(captured("conv").on(place), generator, options) for place in (device_named("cuda"), HOST))
    torch.testing.assert_close(there[0].images.cpu(), here[0].images, rtol=1e-5, atol=1e-5)
    assert math.isclose(there[0].loss, here[0].loss, rel_tol=1e-3)
    assert all(visit.images.is_cuda for visit in there)


@needs_cuda
def test_cuda_makes_images_like_those_of_the_cpu():
    config = SynthesisConfig(count=32, batch_size=16, steps=8)
    there, here = (synthesize_set(captured("conv").on(place), config) for place in (device_named("cuda"), HOST))
    assert there.losses[0][-1] == pytest.approx(here.losses[0][-1], rel=0.1)


@needs_cuda
def test_cuda_learns_as_well():
    """In the mean of four seeds; on the CPU the deviation of that is 4 %."""
    float_module, parameters = decided("conv")
    images, errors = inputs(NETWORKS["conv"][1], 64), {}
    for place in (device_named("cuda"), HOST):
        records = []
        for seed in range(0, 400, 100):
            config = ReconstructionConfig(iterations=150, batch_size=16, bfloat16=False, seed=seed)
            reconstruct(moved(float_module, place), parameters, images, config, records.append)
        errors[place.type] = sum(record.error_after for record in records)
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.2)


@needs_cuda
def test_cuda_trains_the_whole_network():
    float_module, parameters = decided("conv")
    images, network = inputs(NETWORKS["conv"][1], 32), moved(float_module, device_named("cuda"))
    config = FinetuneConfig(iterations=20, batch_size=16)
    losses = []
    trained = finetune(network, parameters, images, config, lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    assert device_of(network).type == "cuda"
    assert all(layer.levels.device == HOST for layer in trained.layers.values())
