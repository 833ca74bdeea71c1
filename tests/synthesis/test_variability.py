import pytest
import torch

from dffg.config import VARIABILITIES as NAMES
from dffg.synthesis.variability import VARIABILITIES, VariabilityOptions


def options(strength=0.5, samples=3, width=1.0, are_pictures=True, seed=0):
    return VariabilityOptions(
        strength=strength,
        samples=samples,
        pixel_width=torch.as_tensor(width),
        are_pictures=are_pictures,
        generator=torch.Generator().manual_seed(seed),
    )


class Quadratic:
    """loss = sum x^2, gradient 2 x by autograd; remembers where it was asked."""

    def __init__(self):
        self.asked, self.views = [], []

    def __call__(self, images, transform=None):
        self.asked.append(images.detach().clone())
        images = images.detach().requires_grad_(True)
        seen = images if transform is None else transform(images)
        self.views.append(seen.detach())
        loss = seen.square().sum()
        return float(loss.detach()), torch.autograd.grad(loss, images)[0]


def ask(name, images, variance=None, **fields):
    function = Quadratic()
    variance = torch.zeros_like(images) if variance is None else variance
    return function, VARIABILITIES[name](function, images, variance, options(**fields))


@pytest.fixture
def images():
    return 1 + torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_options_offer_exactly_the_functions_that_exist():
    assert tuple(VARIABILITIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_gradient(name, images):
    assert torch.equal(ask(name, images)[1][1], ask(name, images)[1][1])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("none", "variance-tuning")])
def test_every_step_draws_anew(name, images):
    shared = options()
    gradients = [VARIABILITIES[name](Quadratic(), images, images, shared)[1] for _ in range(10)]
    assert any(not torch.equal(gradients[0], other) for other in gradients[1:])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "variance-tuning"])
def test_only_variance_tuning_touches_the_variance(name, images):
    variance = torch.full_like(images, 7.0)
    assert torch.equal(ask(name, images, variance)[1][2], variance)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_without_strength_the_gradient_is_as_it_is(name, images):
    _, (loss, gradient, _) = ask(name, images, strength=0.0)
    assert torch.equal(gradient, 2 * images)
    assert loss == pytest.approx(float(images.square().sum()), rel=1e-5)


def test_none_is_the_gradient_of_one_pass(images):
    function, (_, gradient, _) = ask("none", images)
    assert torch.equal(gradient, 2 * images)
    assert len(function.asked) == 1


def test_variance_tuning_adds_the_variance_of_the_last_step(images):
    variance = torch.full_like(images, 100.0)
    _, (loss, gradient, _) = ask("variance-tuning", images, variance)
    assert torch.equal(gradient, 2 * images + 100)
    assert loss == pytest.approx(float(images.square().sum()), rel=1e-5)


def test_variance_tuning_hands_on_the_mean_gradient_of_the_neighborhood_minus_the_gradient(images):
    function, (_, _, variance) = ask("variance-tuning", images, torch.full_like(images, 100.0), samples=4)
    center, *neighbors = function.asked
    assert torch.equal(center, images)
    assert len(neighbors) == 4
    mean = sum(2 * neighbor for neighbor in neighbors) / 4
    assert torch.allclose(variance, mean - 2 * images, atol=1e-5)
    assert variance.abs().min() < variance.abs().max()


def test_variance_tuning_looks_uniformly_within_a_quarter_of_the_strength(images):
    width = torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1)
    function, _ = ask("variance-tuning", images, strength=0.4, samples=50, width=width)
    away = (torch.stack(function.asked[1:]) - images) / width
    assert away.amax((0, 1, 3, 4)).tolist() == pytest.approx([0.1] * 3, abs=2e-3)
    assert away.amin((0, 1, 3, 4)).tolist() == pytest.approx([-0.1] * 3, abs=2e-3)
    assert float(away.std()) == pytest.approx(0.2 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_random_mask_hides_the_share_of_its_strength_and_keeps_the_rest(strength):
    images = 1 + torch.rand(8, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    _, (_, gradient, _) = ask("random-mask", images, strength=strength)
    hidden = gradient == 0
    assert float(hidden.float().mean()) == pytest.approx(strength, abs=0.01)
    assert torch.equal(gradient[~hidden], 2 * images[~hidden])


def test_random_mask_of_full_strength_hides_everything(images):
    assert not ask("random-mask", images, strength=1.0)[1][1].any()


def test_random_mask_is_another_one_for_every_image_and_step(images):
    function, same = Quadratic(), images[:1].expand(4, -1, -1, -1)
    shared = options()
    masks = [VARIABILITIES["random-mask"](function, same, images, shared)[1] == 0 for _ in range(2)]
    every = torch.cat(masks).flatten(1)
    differ = (every[:, None] != every[None]).float().mean(-1)
    assert differ[~torch.eye(8, dtype=torch.bool)].min() > 0.35


def test_random_scale_is_uniform_around_one_for_every_pixel():
    images = torch.full((4, 3, 40, 40), 2.0)
    _, (_, gradient, _) = ask("random-scale", images, strength=0.5)
    factor = gradient / 4
    assert float(factor.min()) == pytest.approx(0.5, abs=2e-3)
    assert float(factor.max()) == pytest.approx(1.5, abs=2e-3)
    assert float(factor.mean()) == pytest.approx(1.0, abs=5e-3)
    assert float(factor.std()) == pytest.approx(1 / 12**0.5, rel=0.02)
    assert factor[0].std() > 0.25
    assert (factor[0] != factor[1]).float().mean() > 0.99


def views(images, count=200, strength=0.5):
    function, shared = Quadratic(), options(strength=strength)
    for _ in range(count):
        VARIABILITIES["input-diversity"](function, images, images, shared)
    return function.views


def test_input_diversity_flips_half_of_the_time_at_half_strength():
    ramp = (1 + torch.arange(16.0)).expand(1, 1, 16, 16)
    flipped = [float(view[..., :8].mean() > view[..., 8:].mean()) for view in views(ramp)]
    assert 70 < sum(flipped) < 130


def test_input_diversity_rolls_up_to_an_eighth_of_height_and_width():
    """Shrinking and flipping move the one bright pixel by up to one more."""
    dot = torch.zeros(1, 1, 16, 32)
    dot[..., 8, 16] = 1.0
    found = [divmod(int(view.argmax()), 32) for view in views(dot, count=300) if view.any()]
    rows, columns = {row for row, _ in found}, {column for _, column in found}
    assert {7, 8, 9} <= rows <= set(range(6, 11))
    assert {14, 15, 16, 17, 18} <= columns <= set(range(12, 21))


def test_input_diversity_shrinks_by_up_to_a_tenth_and_pads_with_zeros_all_around():
    ones = torch.ones(1, 1, 20, 40)
    sizes = set()
    for view in views(ones):
        inside = (view[0, 0] != 0).nonzero()
        (top, left), (bottom, right) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        assert len(inside) == (bottom - top) * (right - left)
        assert abs(top - (20 - bottom)) <= 1
        assert abs(left - (40 - right)) <= 1
        sizes.add((bottom - top, right - left))
    assert {height for height, _ in sizes} == {18, 19, 20}
    assert {width for _, width in sizes} == {36, 37, 38, 39, 40}


def test_input_diversity_keeps_the_shape_and_moves_the_gradient_to_where_the_pixels_came_from(images):
    function, (_, gradient, _) = ask("input-diversity", images[..., :6], strength=1.0)
    assert function.views[0].shape == images[..., :6].shape
    # The view holds every pixel up to once (nearest), so the gradient is twice those it shows, and else 0.
    shown = gradient != 0
    assert torch.equal(gradient[shown], 2 * images[..., :6][shown])
    assert int(shown.sum()) == int((function.views[0] != 0).sum())


def test_input_diversity_shows_every_image_in_another_way():
    same = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)).expand(16, -1, -1, -1)
    function, _ = ask("input-diversity", same)
    seen = {view.numpy().tobytes() for view in function.views[0]}
    assert len(seen) > 10


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 50)])
def test_input_diversity_leaves_what_is_no_picture_alone(shape):
    signal = torch.rand(shape)
    function, (_, gradient, _) = ask("input-diversity", signal, strength=1.0, are_pictures=False)
    assert torch.equal(function.views[0], signal)
    assert torch.equal(gradient, 2 * signal)
