import math
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dffg import config
from dffg.config import RANGES, QuantizationConfig
from dffg.errors import InputError
from dffg.quant import ranges
from dffg.quant.ranges import (
    ACTIVATION_RANGES,
    WEIGHT_RANGES,
    Histogram,
    lp_range,
    lp_weight_scale,
    minmax_range,
    minmax_weight_scale,
    mse_range,
    mse_weight_scale,
    percentile_range,
    sigma_range,
)

CONFIG = QuantizationConfig()
fast = settings(max_examples=25)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def histogram_of(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.observe(batch)
    return histogram


def bin_width(histogram):
    return float(histogram.centers[1] - histogram.centers[0])


STREAMS = {
    "one-batch": [randn(5000)],
    "growing-up": [randn(1000), 10 * randn(1000, seed=1).abs(), 500 * randn(1000, seed=2).abs()],
    "growing-down": [randn(1000), -10 * randn(1000, seed=1).abs(), -500 * randn(1000, seed=2).abs()],
    "growing-both-ways": [0.01 * randn(1000), 3 * randn(1000, seed=1), 20 * randn(1000, seed=2), randn(1000, seed=3)],
    "zeros-first": [torch.zeros(100), randn(1000)],
    "constant-first": [torch.full((50,), -3.7), randn(1000)],
    "far-away": [1000 + randn(1000), 1000 + randn(1000, seed=1)],
    "relu": [randn(3000).relu(), 2 * randn(3000, seed=1).relu()],
}


@pytest.mark.parametrize("shape", [(8, 16, 112, 112), (8, 16, 12544), (8, 16, 16, 28, 28)])
def test_large_maps_are_counted_by_a_sample_and_their_extremes_exactly(shape):
    values = randn(*shape)
    values[(1, 2, *[1] * (len(shape) - 2))] = 9.0  # no sample has it
    assert ranges._sample(values).numel() < values.numel() / 4
    assert 9.0 not in ranges._sample(values)
    histogram = histogram_of(values)
    assert float(histogram.counts.sum()) == pytest.approx(values.numel())
    assert histogram.high == 9.0
    shares = histogram.counts.cumsum(0) / values.numel()
    true = torch.stack(
        [(values < edge).double().mean() for edge in (histogram.centers + bin_width(histogram) / 2)[::64]]
    )
    # a share of 1/2 from 65536 values has a standard error of 0.002
    assert float((shares[::64] - true).abs().max()) < 0.01


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_no_value_is_lost_and_none_is_moved_by_more_than_a_bin(stream):
    histogram, data = histogram_of(*stream), torch.cat(stream).double().sort().values
    assert (histogram.low, histogram.high) == (float(data[0]), float(data[-1]))
    assert float(histogram.counts.sum()) == len(data)
    spread = torch.repeat_interleave(histogram.centers, histogram.counts.long())
    assert (spread - data).abs().max() <= 1.001 * bin_width(histogram)


@pytest.mark.parametrize(("shape", "kept"), [((2, 3, 30, 30), 10), ((2, 3, 8, 8, 8), 3)])
def test_a_sample_takes_every_so_many_rows_and_columns(shape, kept, monkeypatch):
    monkeypatch.setattr(ranges, "_SAMPLED", {30: 600, 8: 113}[shape[-1]])
    sample = ranges._sample(torch.zeros(shape))
    assert sample.shape == (*shape[:2], *[kept] * (len(shape) - 2))
    assert sample.numel() >= ranges._SAMPLED


@pytest.mark.parametrize("shape", [(4, 50, 48), (4, 6, 8, 48), (4, 48, 5, 5), (900, 48)], ids=str)
def test_a_sample_passes_over_no_channel_and_no_place(shape, monkeypatch):
    """Tokens and maps with channels last, maps of which one row would be left, and vectors."""
    monkeypatch.setattr(ranges, "_SAMPLED", math.prod(shape) // 24)
    values = torch.arange(math.prod(shape)).reshape(shape)
    sample = ranges._sample(values)
    assert ranges._SAMPLED / 2 <= len(sample) <= 1.1 * ranges._SAMPLED
    seen = [set(place.tolist()) for place in torch.unravel_index(sample, shape)]
    assert [len(places) for places in seen] == [*shape]


@pytest.mark.parametrize("data", [randn(5000).relu() - 0.3, 0.5 - randn(5000).relu(), 2 + randn(5000)], ids=str)
def test_mirrored_counts_every_value_and_its_negative(data):
    mirrored, both = histogram_of(data).mirrored(), torch.cat([data, -data]).double()
    assert (mirrored.low, mirrored.high) == pytest.approx((-float(data.abs().max()), float(data.abs().max())))
    assert float(mirrored.counts.sum()) == len(both)
    width = mirrored.bin_width
    for edge in np.linspace(mirrored.low, mirrored.high, 9):
        below = float(mirrored.counts[mirrored.centers < edge].sum())
        # a value moves by a bin of either histogram at most
        assert int((both < edge - 2 * width).sum()) <= below <= int((both < edge + 2 * width).sum())


def test_the_bins_stay_fine_enough():
    histogram = histogram_of(*STREAMS["growing-both-ways"])
    assert len(histogram.counts) == 2048
    assert bin_width(histogram) <= 4 * (histogram.high - histogram.low) / 2048


@given(st.lists(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
@fast
def test_any_stream_is_counted_whole(batches):
    histogram = histogram_of(*map(torch.tensor, batches))
    data = [value for batch in batches for value in batch]
    assert float(histogram.counts.sum()) == len(data)
    assert (histogram.low, histogram.high) == (min(data), max(data))
    assert float(histogram.centers[0]) - bin_width(histogram) <= min(data)
    assert max(data) <= float(histogram.centers[-1]) + bin_width(histogram)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_and_do_not_hang(value):
    def give_up(*_):
        raise TimeoutError("observe() does not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with pytest.raises(InputError, match=r"NaN|infinite"):
            histogram_of(randn(10), torch.tensor([1.0, value]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_options_offer_exactly_the_functions_that_exist():
    assert tuple(ACTIVATION_RANGES) == RANGES
    assert tuple(WEIGHT_RANGES) == config.WEIGHT_RANGES


def test_minmax_is_everything_that_was_seen():
    stream = STREAMS["growing-both-ways"]
    data = torch.cat(stream)
    assert minmax_range(histogram_of(*stream), 8, CONFIG) == (float(data.min()), float(data.max()))


@pytest.mark.parametrize("percentile", [61.37, 98.63, 99.87, 100.0])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_percentile_is_numpys_within_a_bin(stream, percentile):
    histogram, data = histogram_of(*stream), torch.cat(stream).numpy()
    tail = (100 - percentile) / 2
    low, high = percentile_range(histogram, 8, QuantizationConfig(percentile=percentile))
    expected = np.percentile(data, [tail, 100 - tail], method="inverted_cdf")
    assert (low, high) == pytest.approx(tuple(expected), abs=1.001 * bin_width(histogram))
    assert histogram.low <= low <= high <= histogram.high


def grid_error(data, low, high, bits, norm=2):
    """Mean power of the error of the affine grid of a range, in plain numpy."""
    scale = (high - low) / (2**bits - 1)
    zero_point = np.rint(-low / scale)
    levels = np.clip(np.rint(data / scale) + zero_point, 0, 2**bits - 1)
    return np.mean(np.abs(scale * (levels - zero_point) - data) ** norm)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "data",
    [
        randn(4000),
        randn(4000).relu(),
        randn(4000) ** 3,
        torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 0.2,
        torch.cat([randn(4000), 50 + randn(5)]),
    ],
    ids=["normal", "relu", "heavy", "uniform", "outliers"],
)
def test_mse_range_is_the_best_of_a_brute_force_search(data, bits):
    low, high = mse_range(histogram_of(data), bits, CONFIG)
    values = data.double().numpy()
    widest = min(0.0, values.min()), max(0.0, values.max())
    errors = [grid_error(values, widest[0] * s, widest[1] * s, bits) for s in np.linspace(0.1, 1, 400)]
    assert grid_error(values, low, high, bits) <= 1.05 * min(errors)
    assert low <= 0 <= high


@pytest.mark.parametrize("norm", [1.0, 2.4, 4.0])
@pytest.mark.parametrize("data", [randn(4000), randn(4000) ** 3, randn(4000).relu()], ids=["normal", "heavy", "relu"])
def test_lp_range_is_the_best_of_a_brute_force_search_in_its_norm(data, norm):
    low, high = lp_range(histogram_of(data), 4, QuantizationConfig(norm=norm))
    values = data.double().numpy()
    widest = min(0.0, values.min()), max(0.0, values.max())
    errors = [grid_error(values, widest[0] * s, widest[1] * s, 4, norm) for s in np.linspace(0.1, 1, 400)]
    assert grid_error(values, low, high, 4, norm) <= 1.05 * min(errors)


def test_a_higher_norm_clips_less():
    histogram = histogram_of(randn(4000) ** 3)
    ends = [lp_range(histogram, 4, QuantizationConfig(norm=norm))[1] for norm in (1.0, 2.0, 2.4, 4.0)]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]
    assert lp_range(histogram, 4, QuantizationConfig(norm=2.0)) == mse_range(histogram, 4, CONFIG)


def test_mse_clips_outliers_where_levels_are_few_and_keeps_all_where_they_are_many():
    data = torch.cat([torch.rand(10_000), torch.tensor([10.0])])
    assert mse_range(histogram_of(data), 4, CONFIG)[1] < 4
    assert mse_range(histogram_of(torch.rand(10_000)), 8, CONFIG)[1] > 0.98


def test_mse_of_one_value_is_a_range_that_holds_it():
    low, high = mse_range(histogram_of(torch.zeros(10)), 8, CONFIG)
    assert (low, high) == (0, 0)
    low, high = mse_range(histogram_of(torch.full((10,), 2.0)), 8, CONFIG)
    assert (low, high) == pytest.approx((0, 2), rel=1e-2)


def half_normal_std(std):
    return std * (1 - 2 / np.pi) ** 0.5


@pytest.mark.parametrize(("bits", "sigmas"), [(6, 14), (7, 25), (8, 25)])
def test_sigma_is_many_deviations_of_the_positive_values(bits, sigmas):
    histogram = histogram_of(randn(100_000).relu() * 3)
    low, high = sigma_range(histogram, bits, CONFIG)
    assert low == 0
    assert high == pytest.approx(sigmas * half_normal_std(3), rel=0.02)


def test_sigma_leaves_out_the_zeros_on_either_side():
    values = torch.cat([torch.zeros(2000), -randn(2000).abs()])
    low, high = sigma_range(histogram_of(values), 8, CONFIG)
    assert (low, high) == (pytest.approx(-25 * float(values[2000:].std()), rel=0.02), 0.0)


def test_all_percent_end_at_the_last_bin():
    """Shares that are summed up may stay below 1."""
    histogram = histogram_of(torch.linspace(0, 1, 2048))
    histogram.counts = torch.full_like(histogram.counts, 0.1)
    assert float(histogram.counts.cumsum(0)[-1]) < float(histogram.counts.sum())
    everything = QuantizationConfig(percentile=100.0)
    assert percentile_range(histogram, 8, everything) == pytest.approx((0.0, 1.0), abs=1e-3)


def test_sigma_looks_at_each_side_alone():
    values = randn(100_000)
    low, high = sigma_range(histogram_of(torch.where(values > 0, values, values * 2)), 8, CONFIG)
    assert low == pytest.approx(2 * -high, rel=0.02)


def test_sigma_ends_at_what_was_seen_where_levels_are_few():
    histogram = histogram_of(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.04]))
    assert sigma_range(histogram, 4, CONFIG) == (0.0, pytest.approx(12 * float(np.std([1, 1, 1, 1.04])), rel=0.02))
    assert sigma_range(histogram_of(randn(1000)), 4, CONFIG)[1] == pytest.approx(float(randn(1000).max()))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_weight_scale_puts_the_largest_weight_on_the_largest_integer(bits):
    weight = torch.tensor([[1.0, -4.0], [0.25, 0.5]]).reshape(2, 2, 1, 1)
    quant_max = 2 ** (bits - 1) - 1
    assert minmax_weight_scale(weight, bits, CONFIG).tolist() == pytest.approx([4 / quant_max, 0.5 / quant_max])


def weight_error(row, scale, bits, norm=2):
    levels = np.clip(np.rint(row / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.mean(np.abs(levels * scale - row) ** norm)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_weight_scale_is_the_best_of_a_brute_force_search_for_every_channel(bits):
    weight = randn(6, 5, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 5.0, 1.0, 1.0]).reshape(-1, 1, 1, 1)
    weight[4, 0, 0, 0] = 30.0
    scales = mse_weight_scale(weight, bits, CONFIG).double().numpy()
    widest = minmax_weight_scale(weight, bits, CONFIG).double().numpy()
    for row, scale, top in zip(weight.double().flatten(1).numpy(), scales, widest):
        best = min(weight_error(row, top * s, bits) for s in np.linspace(0.2, 1, 100))
        assert weight_error(row, scale, bits) <= 1.001 * best
        assert weight_error(row, scale, bits) <= weight_error(row, top, bits) * 1.0001
        assert 0.199 * top <= scale <= 1.001 * top


@pytest.mark.parametrize("norm", [1.0, 2.4, 4.0])
def test_lp_weight_scale_is_the_best_of_a_brute_force_search_in_its_norm(norm):
    weight = randn(6, 5, 3, 3) ** 3
    scales = lp_weight_scale(weight, 4, QuantizationConfig(norm=norm)).double().numpy()
    for row, scale in zip(weight.double().flatten(1).numpy(), scales):
        top = np.abs(row).max() / 7
        best = min(weight_error(row, top * s, 4, norm) for s in np.linspace(0.2, 1, 100))
        assert weight_error(row, scale, 4, norm) <= 1.001 * best


def test_channels_do_not_share_their_scale():
    weight = randn(3, 8)
    together = mse_weight_scale(weight, 4, CONFIG)
    assert torch.allclose(together, torch.cat([mse_weight_scale(weight[i : i + 1], 4, CONFIG) for i in range(3)]))


@pytest.mark.parametrize("choose", WEIGHT_RANGES.values(), ids=WEIGHT_RANGES)
def test_zero_weights_give_no_nan(choose):
    scale = choose(torch.zeros(2, 3), 8, CONFIG)
    assert torch.isfinite(scale).all()
    assert (scale < 1e-20).all()
