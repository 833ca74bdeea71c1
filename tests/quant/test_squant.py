import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dffg.quant.affine import weight_qparams
from dffg.quant.squant import squant

fast = settings(max_examples=60)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.sampled_from([(), (1, 1), (3,), (3, 3), (2, 2, 2)]))


def in_steps(*rows, bits=4):
    """A weight measured in steps, and its parameters."""
    weight = torch.tensor(rows)
    return weight, weight_qparams(torch.ones(len(weight)), bits)


def random_weight(shape, bits, clip, seed):
    """A weight whose largest value per channel is `clip` times the largest integer, and its parameters."""
    outputs, inputs, kernel = shape
    weight = torch.randn(outputs, inputs, *kernel, generator=torch.Generator().manual_seed(seed))
    scale = weight.flatten(1).abs().amax(1) / clip / (2 ** (bits - 1) - 1)
    return weight, weight_qparams(scale, bits)


def errors_of(weight, qparams):
    """(outputs, inputs, kernel): errors in steps, and whether the weight is inside the range, in numpy."""
    target = weight.double().numpy() / qparams.scale.double().numpy().reshape(-1, *[1] * (weight.dim() - 1))
    target = target.reshape(*weight.shape[:2], -1)
    inside = (target > qparams.quant_min) & (target < qparams.quant_max)
    return squant(weight, qparams).double().numpy().reshape(target.shape) - target, inside


@given(shapes, st.integers(2, 8), st.integers(0, 10_000))
@fast
def test_errors_cancel_within_every_kernel_and_channel_and_none_is_a_whole_step(shape, bits, seed):
    errors, _ = errors_of(*random_weight(shape, bits, 1.0, seed))
    assert np.abs(errors).max() < 1 + 1e-6
    assert np.abs(errors.sum(2)).max() <= 1 + 1e-5
    assert np.abs(errors.sum((1, 2))).max() <= 0.5 + 1e-5


@given(shapes, st.integers(2, 8), st.floats(1.0, 3.0), st.integers(0, 10_000))
@fast
def test_clipped_weights_stay_clipped_and_the_others_within_a_step(shape, bits, clip, seed):
    weight, qparams = random_weight(shape, bits, clip, seed)
    levels = squant(weight, qparams)
    assert levels.dtype == torch.int8
    assert levels.shape == weight.shape
    assert qparams.quant_min <= int(levels.min())
    assert int(levels.max()) <= qparams.quant_max
    errors, inside = errors_of(weight, qparams)
    assert np.abs(errors[inside]).max(initial=0) < 1
    ends = levels.numpy().reshape(errors.shape)[~inside]
    assert np.isin(ends, [qparams.quant_min, qparams.quant_max]).all()


@given(shapes, st.integers(2, 5), st.floats(1.0, 3.0), st.integers(0, 10_000))
@fast
def test_a_sum_stays_large_only_where_all_that_could_lower_it_is_used_up(shape, bits, clip, seed):
    errors, inside = errors_of(*random_weight(shape, bits, clip, seed))
    for channel, movable in zip(errors, inside):
        total = channel.sum()
        if abs(total) > 0.5 + 1e-6:
            kernels = channel.sum(1) * np.sign(total)
            left = np.where(movable, channel * np.sign(total), 0).max(1)
            assert not ((kernels > 1e-6) & (left > 1e-6)).any()


@given(st.lists(st.floats(-3.25, 3.25, width=32), min_size=1, max_size=9), st.booleans())
@fast
def test_it_is_the_nearest_of_all_roundings_whose_errors_cancel(row, one_kernel):
    """Brute force over every floor and ceiling, for one kernel and for one channel of a linear layer."""
    weight, qparams = in_steps(row)
    weight = weight.reshape(1, 1, -1) if one_kernel else weight
    target = np.array(row, dtype=np.float64)
    corners = np.array(list(itertools.product(*zip(np.floor(target), np.ceil(target)))))
    cancelling = corners[np.abs((corners - target).sum(1)) <= 0.5 + 1e-9]
    least = ((cancelling - target) ** 2).sum(1).min()
    levels = squant(weight, qparams).double().numpy().flatten()
    assert abs((levels - target).sum()) <= 0.5 + 1e-9
    assert ((levels - target) ** 2).sum() == pytest.approx(least, abs=1e-6)


def test_the_largest_errors_of_a_kernel_are_flipped():
    weight, qparams = in_steps([0.40, 0.45, 0.30, 0.30])
    assert squant(weight.unsqueeze(0), qparams).tolist() == [[[0, 1, 0, 0]]]
    weight, qparams = in_steps([-0.40, -0.45, -0.30, -0.38])
    assert squant(weight.unsqueeze(0), qparams).tolist() == [[[-1, -1, 0, 0]]]


def test_a_channel_flips_one_rounding_in_each_of_the_kernels_with_the_largest_sums():
    weight, qparams = in_steps([[0.2, 0.1], [0.15, 0.30], [0.1, 0.1], [-0.1, 0.0]])
    assert squant(weight, qparams).tolist() == [[[0, 0], [0, 1], [0, 0], [0, 0]]]


def test_what_clipping_takes_the_other_weights_give():
    weight, qparams = in_steps([5.0, 0.4, 0.4, 0.2], bits=3)
    assert squant(weight, qparams).tolist() == [[3, 1, 1, 1]]
    weight, qparams = in_steps([-9.0, 0.4, 3.4, 0.2], bits=3)
    assert squant(weight, qparams).tolist() == [[-4, 0, 3, 0]]


def test_integers_are_left_as_they_are():
    weight, qparams = in_steps([[1.0, -2.0, 3.0], [0.0, 0.0, 7.0]])
    assert torch.equal(squant(weight, qparams).float(), weight)


def test_channels_do_not_see_each_other():
    weight, qparams = random_weight((4, 6, (3, 3)), 4, 1.5, 0)
    alone = [squant(weight[i : i + 1], weight_qparams(qparams.scale[i : i + 1], 4)) for i in range(4)]
    assert torch.equal(squant(weight, qparams), torch.cat(alone))
