"""Networks without BatchNorm: the measure of patches, and what images made from it are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from benchmarks.digits import SPEC, Digits, DigitsTransformer, train_digits
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.config import QuantizationConfig, SynthesisConfig
from dffg.errors import StatisticsError
from dffg.evaluation.metrics import kl_divergence
from dffg.graph.captured import capture
from dffg.graph.patches import patch_sources
from dffg.pipeline.steps import quantize
from dffg.quant.decide import simulate
from dffg.spec import ImageSpec
from dffg.synthesis.chain import method_of
from dffg.synthesis.generators import chain_of
from dffg.synthesis.patches import (
    BANDWIDTH,
    CLASS_WEIGHT,
    PatchObjective,
    as_patches,
    entropy,
    roughness,
    similarities,
    spread_classes,
)
from dffg.synthesis.synthesize import synthesize_set

PICTURE = ImageSpec(shape=(3, 8, 8))


def group_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


class Written(nn.Module):
    """Attention in single products."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = F.dropout((x @ x.transpose(1, 2)).softmax(-1), 0.1, self.training) @ x
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def transformer() -> Digits:
    return train_digits(make=DigitsTransformer)


def test_entropy_of_one_value_is_that_of_the_kernel() -> None:
    expected = 0.5 * math.log(2 * math.pi * math.e * BANDWIDTH**2)
    assert entropy(torch.full((2, 30), 0.3)).tolist() == pytest.approx([expected] * 2, abs=1e-3)


def test_entropy_of_values_everywhere_is_that_of_a_uniform_density() -> None:
    spread = torch.linspace(-1, 1, 2000)[None]
    assert float(entropy(spread)) == pytest.approx(math.log(2), abs=0.1)
    assert float(entropy(spread)) > float(entropy(spread / 2)) > float(entropy(spread / 4))


def test_similarities_are_cosines() -> None:
    patches = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = similarities(patches).reshape(2, 5, 5)
    expected = F.cosine_similarity(patches[:, :, None], patches[:, None], dim=3)
    torch.testing.assert_close(found, expected)


def test_patches_are_tokens_or_positions() -> None:
    attention = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(as_patches(attention, "attention")[1, 2], attention[1, :, 2].flatten())
    maps = torch.randn(2, 6, 3, 4)
    assert torch.equal(as_patches(maps, "channels first")[1, 5], maps[1, :, 1, 1])
    assert torch.equal(as_patches(maps.movedim(1, 3), "channels last"), as_patches(maps, "channels first"))
    many = as_patches(torch.arange(196.0).reshape(1, 196, 1), "attention")[0, :, 0]
    assert (len(many), many[0], many[-1]) == (64, 0, 195)


@pytest.mark.parametrize(
    ("make", "shape", "expected", "said"),
    [
        (DigitsTransformer, (1, 8, 8), 2, "2 attentions"),
        (Written, (3, 8, 8), 1, "1 attentions"),
        (group_norm, (3, 8, 8), 2, "2 normalization layers"),
    ],
)
def test_what_is_compared_is_found_and_said(make: object, shape: tuple[int, ...], expected: int, said: str) -> None:
    captured = capture(make().eval(), spec=ImageSpec(shape=shape))  # type: ignore[operator]
    assert len(patch_sources(captured.module)) == expected
    assert "experimental" in captured.notes[-1]
    assert said in captured.notes[-1]
    loss = method_of(captured, SynthesisConfig()).objective(torch.rand(4, *shape))
    assert math.isfinite(float(loss))


def test_a_network_without_patches_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.LayerNorm(8))
    with pytest.raises(StatisticsError, match="neither attention nor another normalization"):
        capture(model, spec=PICTURE)


def test_generators_that_need_batch_norm_say_so() -> None:
    captured = capture(group_norm(), spec=PICTURE)
    with pytest.raises(StatisticsError, match="--generator zeroq needs BatchNorm"):
        chain_of(captured, SynthesisConfig(generator="zeroq"))
    assert chain_of(captured, SynthesisConfig(generator="noise")) is not None


def test_the_loss_is_the_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    model, x = group_norm(), torch.rand(4, 3, 8, 8)
    captured = capture(model, spec=ImageSpec(shape=(3, 8, 8), bounds=(-1.0, 1.0)))
    with torch.no_grad():
        first, last = model[0](x), model[:4](x)
        entropies = [entropy(similarities(as_patches(values, "channels first"))).mean() for values in (first, last)]
        classes = F.cross_entropy(model(x), torch.tensor([0, 1, 2, 3]))
        found = PatchObjective(captured.module, captured.spec)(x)
    assert float(found) == pytest.approx(float(-sum(entropies) / 2 + CLASS_WEIGHT * classes), abs=1e-5)
    with torch.no_grad():
        rough = PatchObjective(captured.module, PICTURE)(x)
    assert float(rough - found) == pytest.approx(10 * float((roughness(x, PICTURE) - 0.07).mean()), abs=1e-4)


def test_roughness_is_a_share_of_the_range() -> None:
    board = torch.from_numpy(np.indices((8, 8)).sum(0) % 2).float().expand(1, 3, 8, 8)
    spec = ImageSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,))
    assert float(roughness((board - 0.5) / 0.25, spec)) == pytest.approx(1)
    assert float(roughness(torch.zeros(1, 3, 8, 8), spec)) < 1e-5
    assert float(roughness((board[..., :1, :] - 0.5) / 0.25, spec)) == pytest.approx(1)
    assert float(roughness((board[..., :1, :1] - 0.5) / 0.25, spec)) < 1e-5


def test_images_of_a_batch_get_different_classes() -> None:
    assert spread_classes(4, 1000).tolist() == [0, 250, 500, 750]
    assert spread_classes(5, 3).tolist() == [0, 1, 2, 0, 1]


def test_the_walk_goes_downhill(transformer: Digits) -> None:
    captured = capture(transformer.model, spec=SPEC)
    made = synthesize_set(captured, SynthesisConfig(count=16, batch_size=16))
    losses = [loss for loss in made.losses[0] if loss is not None]
    assert losses[-1] < losses[0] - 0.2


def divergence_of(images: np.ndarray, digits: Digits, bits: str) -> float:
    """From the float network on real test images, in nats, of a network that was calibrated with these."""
    captured = capture(digits.model, spec=SPEC)
    config = QuantizationConfig(bits=bits)
    module = simulate(captured, torch.split(torch.from_numpy(images), 16), config).module
    with torch.no_grad():
        answers = [network(torch.from_numpy(digits.images)).numpy() for network in (digits.model, module)]
    return float(kl_divergence(*answers).mean())


def test_made_images_calibrate_far_better_than_what_has_another_range(transformer: Digits) -> None:
    """Uniform pixels are as good on this network; what is asserted is what holds on every seed that was tried."""
    captured = capture(transformer.model, spec=SPEC)
    sets = {
        name: synthesize_set(captured, SynthesisConfig(count=64, generator=name)).inputs for name in ("dffg", "noise")
    }
    sets["real"] = transformer.training_images[:64]
    for bits in ("W8A8", "W4A8"):
        found = {name: divergence_of(images, transformer, bits) for name, images in sets.items()}
        assert found["dffg"] < 0.2 * found["noise"]
        assert found["dffg"] < 4 * found["real"] + 1e-3


def test_from_transformer_to_verified_file(transformer: Digits, tmp_path: object) -> None:
    result = quantize(transformer.model, f"{tmp_path}/out", spec=SPEC, synthesis=SynthesisConfig(count=16))
    assert result.verified
    assert result.kernels.integer >= 10
    assert any("experimental" in note for note in result.notes)
    kinds = {name.rpartition("(")[2] for name in result.float_operations}
    assert {"layer_norm)", "gelu)", "scaled_dot_product_attention)"} <= kinds
    assert ")" not in kinds
