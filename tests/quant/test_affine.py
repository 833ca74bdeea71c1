import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dffg.quant.affine import (
    QParams,
    activation_qparams,
    bias_qparams,
    dequantize,
    fake_quantize,
    per_channel,
    quantize,
    signed_qparams,
    weight_qparams,
    widen_for_bias,
)

fast = settings(max_examples=40)
ends = st.floats(-1e4, 1e4, width=32)
widths = st.integers(2, 8)


def values(count=4096, seed=0, size=2.0):
    return size * torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fake_quantize_per_tensor_is_torchs_own(bits):
    qparams = QParams(
        scale=torch.tensor(0.03125), zero_point=torch.tensor(2, dtype=torch.uint8), quant_min=0, quant_max=2**bits - 1
    )
    x = torch.cat([values(), torch.arange(-40, 300) * 0.015625])
    # The scale is a power of two: torch multiplies by its inverse, which changes ties for other scales.
    assert torch.equal(fake_quantize(x, qparams), torch.fake_quantize_per_tensor_affine(x, 0.03125, 2, 0, 2**bits - 1))


@given(ends, ends, widths, st.integers(0, 100))
@fast
def test_fake_quantize_of_any_range_is_torchs_own_but_for_ties(low, high, bits, seed):
    qparams = activation_qparams(low, high, bits)
    x = low + (high - low) * torch.rand(1000, generator=torch.Generator().manual_seed(seed))
    own, reference = (
        fake_quantize(x, qparams),
        torch.fake_quantize_per_tensor_affine(x, float(qparams.scale), int(qparams.zero_point), 0, 2**bits - 1),
    )
    differ = (own - reference).abs() > 1e-4 * qparams.scale
    assert float(differ.float().mean()) <= 0.003
    assert (own - reference).abs().max() <= 1.001 * qparams.scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fake_quantize_per_channel_is_torchs_own(bits):
    weight = values(6 * 4 * 9).reshape(6, 4, 3, 3)
    scale = torch.tensor([2.0**-k for k in range(6)])
    qparams = weight_qparams(scale, bits)
    reference = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(6, dtype=torch.int32), 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    assert torch.equal(fake_quantize(weight, qparams), reference)


def test_ties_go_to_even():
    qparams = QParams(scale=torch.tensor(1.0), zero_point=torch.tensor(0, dtype=torch.int8), quant_min=-8, quant_max=7)
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 100.0, -100.0])
    assert quantize(x, qparams).tolist() == [-2, -2, 0, 0, 2, 2, 7, -8]


def test_the_zero_point_is_added_after_rounding_and_taken_off_before_scaling():
    qparams = QParams(scale=torch.tensor(0.5), zero_point=torch.tensor(3, dtype=torch.uint8), quant_min=0, quant_max=15)
    levels = quantize(torch.tensor([-1.5, 0.25, 0.3, 6.0, 9.0]), qparams)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [0, 3, 4, 15, 15]
    assert dequantize(levels, qparams).tolist() == [-1.5, 0.0, 0.5, 6.0, 6.0]


def test_neither_values_nor_levels_are_changed():
    qparams = QParams(scale=torch.tensor(1.0), zero_point=torch.tensor(1, dtype=torch.uint8), quant_min=0, quant_max=15)
    x = torch.tensor([0.4, 2.6])
    quantize(x, qparams)
    dequantize(x, qparams)
    assert x.tolist() == pytest.approx([0.4, 2.6])
    assert (float(qparams.scale), int(qparams.zero_point)) == (1.0, 1)


def test_activation_parameters_by_hand():
    qparams = activation_qparams(-1.0, 3.0, 8)
    assert float(qparams.scale) == pytest.approx(4 / 255)
    assert (int(qparams.zero_point), qparams.quant_min, qparams.quant_max) == (64, 0, 255)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.uint8)
    assert qparams.range == pytest.approx((-64 * 4 / 255, 191 * 4 / 255))


@pytest.mark.parametrize(("low", "high", "zero_point", "scale"), [(2.0, 3.0, 0, 3 / 15), (-3.0, -2.0, 15, 3 / 15)])
def test_a_range_is_widened_to_contain_zero(low, high, zero_point, scale):
    qparams = activation_qparams(low, high, 4)
    assert int(qparams.zero_point) == zero_point
    assert float(qparams.scale) == pytest.approx(scale)


@given(ends, ends, widths)
@fast
def test_zero_is_exact_and_every_level_survives_the_round_trip(low, high, bits):
    qparams = activation_qparams(low, high, bits)
    levels = torch.arange(2**bits).to(torch.uint8)
    assert float(fake_quantize(torch.zeros(1), qparams)) == 0
    assert torch.equal(quantize(dequantize(levels, qparams), qparams), levels)


@given(ends, ends, widths, st.integers(0, 100))
@fast
def test_values_in_the_range_move_by_half_a_step_and_keep_their_order(low, high, bits, seed):
    low, high = sorted((low, high))
    qparams = activation_qparams(low, high, bits)
    x = (low + (high - low) * torch.rand(500, generator=torch.Generator().manual_seed(seed))).sort().values
    rounded = fake_quantize(x, qparams)
    # Rounding of the zero point shifts the ends by up to half a step.
    assert (rounded - x).abs().max() <= 1.001 * qparams.scale + 1e-6 * x.abs().max()
    inside = (x > qparams.range[0]) & (x < qparams.range[1])
    assert not inside.any() or (rounded - x)[inside].abs().max() <= 0.501 * qparams.scale + 1e-6 * x.abs().max()
    assert (rounded.diff() >= 0).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1e-42, 2e-42), (-1e-40, 0.0)])
def test_a_range_of_no_width_still_has_a_scale(low, high):
    qparams = activation_qparams(low, high, 8)
    assert float(qparams.scale) > 0
    assert torch.isfinite(1 / qparams.scale)
    assert fake_quantize(torch.zeros(3), qparams).tolist() == [0, 0, 0]
    assert torch.isfinite(fake_quantize(torch.ones(3), qparams)).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 1.5), (-1.5, 3.0), (1.0, 3.0)])
def test_signed_parameters_put_the_larger_end_at_the_largest_integer(low, high, bits):
    qparams = signed_qparams(low, high, bits)
    largest = {2: 1, 5: 15, 8: 127}[bits]
    assert (qparams.quant_min, qparams.quant_max, int(qparams.zero_point)) == (-largest - 1, largest, 0)
    assert float(qparams.scale) == pytest.approx(3.0 / largest)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.int8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_parameters_know_their_width(bits):
    made = (activation_qparams(-1.0, 2.0, bits), signed_qparams(-1.0, 2.0, bits), weight_qparams(torch.ones(2), bits))
    assert [qparams.bits for qparams in made] == [bits] * 3


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 4)])
def test_values_per_channel_meet_the_output_channels(shape):
    values = torch.tensor([1.0, 2.0, 3.0])
    product = torch.ones(shape) * per_channel(values, torch.ones(shape))
    assert [channel.unique().tolist() for channel in product] == [[1.0], [2.0], [3.0]]
    assert product.shape == shape


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_weights_are_symmetric_per_output_channel(bits):
    qparams = weight_qparams(torch.tensor([0.5, 2.0]), bits)
    assert (qparams.quant_min, qparams.quant_max, qparams.axis) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0)
    assert qparams.zero_point.tolist() == [0, 0]
    assert qparams.zero_point.dtype == torch.int8
    levels = quantize(torch.tensor([[0.5, -0.5, 1e6, -1e6]] * 2), qparams)
    assert levels.dtype == torch.int8
    assert levels[0].tolist() == [1, -1, qparams.quant_max, qparams.quant_min]
    assert levels[1, :2].tolist() == [0, 0]


def test_channels_of_zero_weights_keep_a_usable_scale():
    qparams = weight_qparams(torch.zeros(2), 8)
    assert torch.isfinite(1 / qparams.scale).all()
    assert quantize(torch.zeros(2, 3), qparams).tolist() == [[0] * 3] * 2


def test_a_bias_has_the_scale_of_the_products_it_is_added_to():
    qparams = bias_qparams(torch.tensor(0.5), torch.tensor([0.25, 0.125]))
    assert qparams.scale.tolist() == [0.125, 0.0625]
    assert qparams.zero_point.dtype == torch.int32
    assert quantize(torch.tensor([1.0, -1.0], dtype=torch.float64), qparams).tolist() == [8, -16]
    assert (qparams.quant_min, qparams.quant_max) == (-(2**31) + 1, 2**31 - 1)


def test_a_bias_too_large_for_its_integers_is_clipped_and_does_not_turn_around():
    levels = quantize(torch.tensor([1e12, -1e12], dtype=torch.float64), bias_qparams(torch.tensor(1.0), torch.ones(2)))
    assert levels.tolist() == [2**31 - 1, -(2**31) + 1]


def test_scales_are_widened_only_where_the_bias_would_not_fit():
    scale = torch.tensor([0.5, 1e-20, 0.0])
    wide = widen_for_bias(scale, torch.tensor(0.25), torch.tensor([3.0, -3.0, 0.0]))
    assert wide.tolist() == pytest.approx([0.5, 3 / (0.25 * 2**30), 0.0])


@given(st.floats(-1e3, 1e3, width=32), st.floats(2**-20, 1e3, width=32), st.floats(0, 10, width=32))
@fast
def test_a_bias_survives_any_weights(bias, input_scale, weight_scale):
    bias, input_scale = torch.tensor([bias]), torch.tensor(input_scale)
    weights = weight_qparams(widen_for_bias(torch.tensor([weight_scale]), input_scale, bias), 8)
    qparams = bias_qparams(input_scale, weights.scale)
    kept = fake_quantize(bias.double(), qparams)
    assert float((kept - bias).abs()) <= 0.51 * float(qparams.scale) + 1e-5 * float(bias.abs())
