import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dffg.config import SCHEDULES
from dffg.synthesis.update import momentum_sign_step, step_size_at

WIDE = (torch.tensor(-10.0), torch.tensor(10.0))


def column(*values):
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_two_steps_by_hand():
    images, velocity = column(0.0, 0.0, 0.0, 0.0), column(0.0, 0.0, 0.0, 0.0)
    # mean|g| = 2: directions 2, -1, 0.5, -0.5
    images, velocity = momentum_sign_step(
        images, column(4.0, -2.0, 1.0, -1.0), velocity, step_size=0.5, decay=0.5, bounds=WIDE
    )
    assert velocity.flatten().tolist() == [2.0, -1.0, 0.5, -0.5]
    assert images.flatten().tolist() == [-0.5, 0.5, -0.5, 0.5]
    # mean|g| = 8: directions -0.5, 1, -1.5, 1; velocity 0.5 * before + direction
    images, velocity = momentum_sign_step(
        images, column(-4.0, 8.0, -12.0, 8.0), velocity, step_size=0.25, decay=0.5, bounds=WIDE
    )
    assert velocity.flatten().tolist() == [0.5, 0.5, -1.25, 0.75]
    assert images.flatten().tolist() == [-0.75, 0.25, -0.25, 0.25]


def test_the_sign_is_of_the_velocity_not_of_the_gradient():
    velocity = column(5.0, 5.0)
    images, velocity = momentum_sign_step(
        column(0.0, 0.0), column(-1.0, -1.0), velocity, step_size=0.1, decay=0.9, bounds=WIDE
    )
    assert images.flatten().tolist() == pytest.approx([-0.1, -0.1])
    assert velocity.flatten().tolist() == pytest.approx([3.5, 3.5])


def test_gradients_are_accumulated_before_the_sign_is_taken():
    """A large pull up, then two small ones down: a sum of signs would have turned around, the sum has not."""
    images, velocity = column(0.0, 0.0), column(0.0, 0.0)
    for gradient in (column(-1.0, 0.1), column(0.1, -1.0), column(0.1, -1.0)):
        images, velocity = momentum_sign_step(images, gradient, velocity, step_size=1.0, decay=1.0, bounds=WIDE)
    assert images.flatten().tolist() == [3.0, 1.0]


def test_without_decay_it_is_plain_fast_gradient_sign():
    velocity = column(100.0, 100.0, -100.0)
    images, _ = momentum_sign_step(
        column(0.0, 0.0, 0.0), column(-1.0, 2.0, 3.0), velocity, step_size=1.0, decay=0.0, bounds=WIDE
    )
    assert images.flatten().tolist() == [1.0, -1.0, -1.0]


def test_the_decay_decides_how_long_the_past_counts():
    ends = []
    for decay in (0.2, 0.9):
        images, velocity = column(0.0), column(0.0)
        for gradient in (column(1.0), column(-1.0)):
            images, velocity = momentum_sign_step(images, gradient, velocity, step_size=1.0, decay=decay, bounds=WIDE)
        ends.append(float(velocity))
    assert ends == pytest.approx([-0.8, -0.1])


def test_every_image_is_normalized_by_itself():
    gradient = torch.tensor([[1.0, -3.0], [1e-6, -3e-6], [2e6, 0.0]]).reshape(3, 2, 1, 1)
    _, velocity = momentum_sign_step(
        torch.zeros(3, 2, 1, 1), gradient, torch.zeros(3, 2, 1, 1), step_size=0.1, decay=0.9, bounds=WIDE
    )
    assert velocity.flatten().tolist() == pytest.approx([0.5, -1.5, 0.5, -1.5, 2.0, 0.0])


def test_an_all_zero_gradient_leaves_the_velocity_to_decay_and_makes_no_nan():
    gradient = torch.zeros(2, 1, 1, 2)
    gradient[1] = torch.tensor([1.0, -1.0])
    velocity = torch.full((2, 1, 1, 2), 2.0)
    images, velocity = momentum_sign_step(
        torch.zeros(2, 1, 1, 2), gradient, velocity, step_size=0.1, decay=0.5, bounds=WIDE
    )
    assert velocity.flatten().tolist() == [1.0, 1.0, 2.0, 0.0]
    assert images.flatten().tolist() == pytest.approx([-0.1, -0.1, -0.1, 0.0])


def test_no_gradient_and_no_velocity_move_nothing():
    images, velocity = momentum_sign_step(column(0.3), column(0.0), column(0.0), step_size=0.1, decay=0.9, bounds=WIDE)
    assert (float(images), float(velocity)) == (pytest.approx(0.3), 0.0)


def test_images_are_clipped_to_the_bounds_of_each_channel():
    low, high = torch.tensor([-1.0, -2.0]).reshape(2, 1, 1), torch.tensor([1.0, 0.5]).reshape(2, 1, 1)
    start = torch.tensor([0.9, 0.4, -0.9, -1.9]).reshape(2, 2, 1, 1)
    gradient = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(2, 2, 1, 1)
    images, _ = momentum_sign_step(
        start, gradient, torch.zeros_like(start), step_size=0.3, decay=0.9, bounds=(low, high)
    )
    assert images.flatten().tolist() == pytest.approx([1.0, 0.5, -1.0, -2.0])


def test_the_step_size_may_differ_by_channel():
    step_size = torch.tensor([0.25, 0.5]).reshape(2, 1, 1)
    images, _ = momentum_sign_step(
        torch.zeros(1, 2, 1, 1),
        torch.ones(1, 2, 1, 1),
        torch.zeros(1, 2, 1, 1),
        step_size=step_size,
        decay=0.0,
        bounds=WIDE,
    )
    assert images.flatten().tolist() == [-0.25, -0.5]


def test_the_arguments_are_not_changed():
    arguments = [column(1.0, 2.0), column(3.0, 4.0), column(5.0, 6.0)]
    copies = [argument.clone() for argument in arguments]
    momentum_sign_step(*arguments, step_size=0.5, decay=0.5, bounds=WIDE)
    assert all(torch.equal(*pair) for pair in zip(arguments, copies))


@given(st.integers(-20, 20), st.integers(0, 2**31))
@settings(max_examples=25)
def test_the_size_of_the_gradient_does_not_matter(exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    images, gradient, velocity = (torch.randn(2, 3, 2, 2, generator=generator) for _ in range(3))
    one, _ = momentum_sign_step(images, gradient, velocity, step_size=0.1, decay=0.9, bounds=WIDE)
    other, _ = momentum_sign_step(images, gradient * 2.0**exponent, velocity, step_size=0.1, decay=0.9, bounds=WIDE)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 0.25 + 0.25 * math.sqrt(0.5), 0.25, 0.25 - 0.25 * math.sqrt(0.5)]),
        ("linear", [0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_step_sizes_by_hand(schedule, expected):
    assert [step_size_at(step, 4, 0.5, schedule) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7])
def test_step_sizes_start_at_the_first_never_grow_and_never_reach_zero(schedule, steps):
    sizes = [step_size_at(step, steps, 0.125, schedule) for step in range(steps)]
    assert sizes[0] == 0.125
    assert all(sizes)
    assert sizes == sorted(sizes, reverse=True)
