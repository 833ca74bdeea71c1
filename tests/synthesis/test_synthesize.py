import dataclasses
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from dffg.config import MOST_SEED, VARIABILITIES, SynthesisConfig
from dffg.errors import InputError, StatisticsError
from dffg.graph.captured import capture
from dffg.spec import ImageSpec
from dffg.synthesis import synthesize as synthesis
from dffg.synthesis.chain import Visit, chain_generator, gradient_of, method_of, run_chain
from dffg.synthesis.fitting import bytes_per_image
from dffg.synthesis.generators import chain_of
from dffg.synthesis.snapshots import chains_needed, passes_per_chain
from dffg.synthesis.starts import start_from_pictures
from dffg.synthesis.statistics import batch_norm_inputs, batch_norm_statistics_loss
from dffg.synthesis.synthesize import snapshots, synthesize, synthesize_set
from tests.networks import captured, network, randomize, small_conv

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
FEATURES = ImageSpec(shape=(3, 8, 8), bounds=(-2.0, 6.0))


@pytest.fixture(scope="module")
def pictures():
    return capture(randomize(small_conv()), spec=SPEC)


@pytest.fixture(scope="module")
def features():
    return capture(randomize(small_conv()), spec=FEATURES)


def config(**options):
    return SynthesisConfig(
        **{"count": 8, "batch_size": 4, "steps": 8, "burn_in": 6, "variability": "random-mask", **options}
    )


def collect(network, **options):
    return torch.cat(list(synthesize(network, config(**options))))


def loss_of(network, images, **options):
    options = {"slack": SynthesisConfig().slack, **options}
    return float(batch_norm_statistics_loss(network.batch_norms, batch_norm_inputs(network)(images), **options))


# Idea 1: the statistics of BatchNorm show the way.


@pytest.mark.parametrize("statistics", ["batch", "image"])
@pytest.mark.parametrize("variability", VARIABILITIES)
def test_the_loss_falls_along_a_chain(pictures, variability, statistics):
    options = config(steps=16, batch_size=8, variability=variability, statistics=statistics)
    first, *_, last = (loss_of(pictures, snapshot.images) for snapshot in run_chain(pictures, options, 0))
    assert last < 0.65 * first


@pytest.mark.parametrize(
    "name", ["residual-inplace", "inverted-residual", "pre-activation", "linear", "volumes", "shared", "after-concat"]
)
def test_the_loss_falls_on_every_kind_of_network(name):
    model, shape = network(name)
    made = capture(model, spec=ImageSpec(shape=shape))
    losses = [snapshot.loss for snapshot in run_chain(made, config(steps=16, batch_size=8), 0)]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("variability", [name for name in VARIABILITIES if name != "input-diversity"])
def test_the_recorded_loss_is_the_loss_of_exactly_these_images(pictures, variability):
    for snapshot in run_chain(pictures, config(variability=variability), 0):
        assert snapshot.loss == pytest.approx(loss_of(pictures, snapshot.images), rel=1e-4)


def test_statistics_per_image_are_another_goal(features):
    options = config(statistics="image", variability="none")
    *_, last = run_chain(features, options, 0)
    assert last.loss == pytest.approx(loss_of(features, last.images, per_image=True), rel=1e-4)
    assert last.loss != pytest.approx(loss_of(features, last.images), rel=1e-3)


def test_nothing_to_match_moves_nothing_and_makes_no_nan():
    model = randomize(small_conv())
    with torch.no_grad():
        model[1].weight.zero_()
        model[4].weight.zero_()
    first, *_, last = run_chain(capture(model, spec=FEATURES), config(), 0)
    assert torch.equal(first.images, last.images)
    assert last.loss == 0


# Idea 2: fast gradient steps with momentum.


def plain_chain(start, bounds, steps, first, decay, slack):
    """The chain from its formula: hooks on the model, autograd, sign of the accumulated normalized gradient."""
    model = randomize(small_conv())
    low, high = (torch.from_numpy(bound) for bound in bounds)
    images, velocity, path = start.clone(), torch.zeros_like(start), []
    for step in range(steps):
        path.append(images)
        x = images.clone().requires_grad_(True)
        gradient = torch.autograd.grad(plain_loss(model, x, slack), x)[0]
        for image in range(len(images)):
            velocity[image] = decay * velocity[image] + gradient[image] / gradient[image].abs().mean()
        size = first * (1 + math.cos(math.pi * step / steps)) / 2
        images = torch.minimum(torch.maximum(images - size * (high - low) * velocity.sign(), low), high)
    return path


def plain_loss(model, x, slack):
    total = 0.0
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            sd = (layer.running_var + layer.eps).sqrt()
            errors = ((mean - layer.running_mean) / sd, (var + layer.eps).sqrt() / sd - 1)
            total = total + sum((torch.relu(error.abs() - slack) ** 2).mean() for error in errors) / 2
        x = layer(x)
    return total


@pytest.mark.parametrize(("decay", "slack"), [(0.0, 0.0), (0.5, 0.2), (0.95, 0.05)])
def test_a_chain_is_the_plain_loop_of_its_formula(pictures, decay, slack):
    options = config(steps=6, burn_in=0, step_size=0.1, decay=decay, slack=slack, variability="none")
    walked = [snapshot.images for snapshot in run_chain(pictures, options, 0)]
    expected = plain_chain(walked[0].contiguous(), SPEC.input_bounds(), 6, 0.1, decay, slack)
    assert len(walked) == 6
    for image, other in zip(walked, expected, strict=True):
        # A pixel whose velocity is nearly 0 may turn the other way by rounding.
        assert (torch.isclose(image, other, atol=1e-5)).float().mean() > 0.99


def test_a_chain_starts_where_the_configuration_says(pictures):
    options = config(start="pictures", batch_size=4)
    expected = start_from_pictures(options, SPEC, chain_generator(options.seed, 2))
    assert torch.equal(next(run_chain(pictures, options, 2)).images, expected)


def test_the_start_is_noise_around_the_middle_of_the_bounds():
    made = capture(randomize(small_conv()), spec=ImageSpec(shape=(3, 8, 8), mean=SPEC.mean, std=SPEC.std))
    start = next(run_chain(made, config(batch_size=256, start_std=0.1), 0)).images
    pixels = start * torch.tensor(SPEC.std).reshape(3, 1, 1) + torch.tensor(SPEC.mean).reshape(3, 1, 1)
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.5] * 3, abs=5e-3)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([0.1] * 3, rel=0.03)


def test_a_wide_start_is_clipped_to_the_bounds(features):
    start = next(run_chain(features, config(batch_size=64, start_std=0.5), 0)).images
    assert (float(start.min()), float(start.max())) == (-2.0, 6.0)
    assert float((start == 6).float().mean()) == pytest.approx(0.159, abs=0.01)


@pytest.mark.parametrize("made", ["pictures", "features"])
def test_every_image_stays_within_the_bounds(made, request):
    made = request.getfixturevalue(made)
    low, high = (torch.from_numpy(bound) for bound in made.spec.input_bounds())
    images = collect(made, step_size=1.0, schedule="constant")
    assert (images >= low - 1e-5).all()
    assert (images <= high + 1e-5).all()


def test_the_schedule_and_the_step_size_set_how_far_a_step_goes(features):
    for schedule, shrink in (("constant", 1.0), ("linear", 0.75)):
        options = config(steps=4, burn_in=0, step_size=0.01, schedule=schedule, variability="none", start_std=0.1)
        _, one, two, _ = (snapshot.images for snapshot in run_chain(features, options, 0))
        moved = (two - one).abs()
        assert float(moved.median()) == pytest.approx(8 * 0.01 * shrink, rel=1e-4)


# Idea 3: the variability of the gradient makes images differ.


def test_equal_starts_stay_equal_without_variability(features):
    *_, last = run_chain(features, config(start_std=0.0, variability="none"), 0)
    assert (last.images == last.images[:1]).all()


@pytest.mark.parametrize("variability", ["variance-tuning", "random-mask", "random-scale"])
def test_equal_starts_part_with_variability(features, variability):
    *_, last = run_chain(features, config(start_std=0.0, variability=variability, batch_size=2), 0)
    assert (last.images[0] != last.images[1]).any()


def test_input_diversity_parts_the_chains(pictures):
    options = config(start_std=0.0, variability="input-diversity", batch_size=2)
    one, other = (list(run_chain(pictures, options, chain))[-1].images for chain in (0, 1))
    assert (one != other).any()


@pytest.mark.parametrize("variability", [name for name in VARIABILITIES if name != "none"])
def test_every_variability_walks_elsewhere(pictures, variability):
    assert not torch.equal(collect(pictures, variability=variability), collect(pictures, variability="none"))


def test_features_are_not_viewed_from_elsewhere(features):
    viewed = collect(features, variability="input-diversity", variability_strength=1.0)
    assert torch.equal(viewed, collect(features, variability="none"))


def test_random_masks_make_the_images_of_a_batch_move_less_in_concert(features):
    def concert(variability):
        first, *_, last = run_chain(features, config(variability=variability, batch_size=8, steps=16), 0)
        moves = nn.functional.normalize((last.images - first.images).flatten(1), dim=1)
        return float(torch.triu(moves @ moves.T, 1).sum())

    assert concert("random-mask") < 0.97 * concert("none")


# Idea 4: snapshots on the way.


@pytest.mark.parametrize(
    ("burn_in", "keep_every", "kept"), [(0, 1, range(8)), (3, 2, (3, 5, 7)), (5, 4, (5,)), (7, 1, (7,))]
)
def test_snapshots_are_kept_after_the_burn_in_every_so_often(features, burn_in, keep_every, kept):
    options = config(burn_in=burn_in, keep_every=keep_every, count=4 * len(kept))
    found = list(snapshots(features, options))
    walked = list(run_chain(features, options, 0))
    assert [(snapshot.chain, snapshot.step) for snapshot in found] == [(0, step) for step in kept]
    for snapshot in found:
        assert torch.equal(snapshot.images, walked[snapshot.step].images)
        assert snapshot.loss == walked[snapshot.step].loss


def test_a_chain_starts_at_the_noise_and_takes_one_update_per_step(features):
    options = config(steps=5, burn_in=0, step_size=1 / 64, schedule="constant", variability="none", start_std=0.05)
    start, *rest = (snapshot.images for snapshot in run_chain(features, options, 0))
    step = 8 / 64
    for updates, images in enumerate(rest, start=1):
        farthest = float((images - start).abs().max())
        assert farthest == pytest.approx(updates * step, rel=1e-4)


def test_later_snapshots_have_a_lower_loss(features):
    options = config(steps=12, burn_in=2, keep_every=3, count=64, batch_size=4, variability="none")
    losses = {}
    for snapshot in snapshots(features, options):
        losses.setdefault(snapshot.step, []).append(loss_of(features, snapshot.images))
    means = [np.mean(losses[step]) for step in (2, 5, 8, 11)]
    assert means == sorted(means, reverse=True)


def test_pictures_lie_on_the_grid_of_pixels_next_to_what_the_chain_passed(pictures):
    options = config(burn_in=7, count=4)
    (kept,) = snapshots(pictures, options)
    *_, walked = run_chain(pictures, options, 0)
    pixels = 255 * (kept.images * torch.tensor(SPEC.std).reshape(3, 1, 1) + torch.tensor(SPEC.mean).reshape(3, 1, 1))
    assert (pixels - pixels.round()).abs().max() < 1e-3
    away = (kept.images - walked.images).abs() * torch.tensor(SPEC.std).reshape(3, 1, 1)
    assert 0 < float(away.max()) <= 0.5 / 255 + 1e-5


# The stream.


@pytest.mark.parametrize("variability", VARIABILITIES)
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(pictures, variability):
    one, again, other = (collect(pictures, variability=variability, seed=seed) for seed in (3, 3, 4))
    assert one.numpy().tobytes() == again.numpy().tobytes()
    assert one.numpy().tobytes() != other.numpy().tobytes()


def test_the_global_generator_is_neither_used_nor_moved(pictures):
    torch.manual_seed(1)
    one = collect(pictures)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(one, collect(pictures))


def test_neighboring_chains_and_seeds_start_elsewhere(features):
    starts = [next(run_chain(features, config(seed=seed), chain)).images for seed in (0, 1) for chain in (0, 1)]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(starts, 2))


@pytest.mark.parametrize("seed", [MOST_SEED, -MOST_SEED])
def test_chains_of_the_largest_seeds_start_elsewhere(seed):
    states = [chain_generator(seed, chain).initial_seed() for chain in (0, 1, 2**20 - 1)]
    assert len(set(states)) == 3


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (9, [4, 4, 1]), (11, [4, 4, 3])])
def test_as_many_images_as_asked_for(features, count, sizes):
    assert [len(batch) for batch in synthesize(features, config(count=count))] == sizes


def test_asking_for_more_images_only_adds_some(features):
    assert torch.equal(collect(features, count=13)[:7], collect(features, count=7))


@pytest.mark.parametrize(
    ("options", "chains"),
    [({"count": 8}, 1), ({"count": 9}, 2), ({"count": 8, "keep_every": 2}, 2), ({"count": 1, "burn_in": 0}, 1)],
)
def test_as_many_chains_as_needed(features, options, chains):
    assert chains_needed(config(**options)) == chains
    assert {snapshot.chain for snapshot in snapshots(features, config(**options))} == set(range(chains))


def test_images_that_are_no_numbers_are_refused_and_not_stored_as_black(features):
    def broken(chain):
        yield Visit(images=torch.full((4, 3, 8, 8), math.nan), step=0, loss=math.nan)

    with pytest.raises(StatisticsError, match="the images are NaN after 0 steps, where the loss is nan"):
        list(snapshots(features, config(count=4, burn_in=0), run_chain=broken))


def clock(monkeypatch):
    """A clock on which every look takes a second."""
    monkeypatch.setattr(synthesis.time, "monotonic", itertools.count().__next__)


def test_time_running_out_still_yields_one_batch(features, monkeypatch):
    clock(monkeypatch)
    (only,) = snapshots(features, config(count=100, max_seconds=0.5))
    assert (only.step, len(only.images)) == (0, 4)


def test_time_running_out_later_stops_the_stream(features, monkeypatch):
    clock(monkeypatch)
    found = list(snapshots(features, config(count=100, burn_in=0, max_seconds=2.5)))
    assert [snapshot.step for snapshot in found] == [0, 1, 2]


def test_time_enough_changes_nothing(features):
    assert torch.equal(collect(features, max_seconds=1e6), collect(features))


def test_no_batch_given_away_is_kept_alive(features):
    stream = synthesize(features, config(count=24, burn_in=0))
    given = []
    for batch in stream:
        given.append(weakref.ref(batch))
        del batch
        assert sum(reference() is not None for reference in given) <= 1
    assert len(given) == 6


def test_the_first_batch_comes_before_the_second_chain(features):
    seen = []
    stream = synthesize(features, config(count=1000), progress=seen.append)
    next(stream)
    assert [progress.step for progress in seen] == list(range(1, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_callers_to_change(channels):
    spec = ImageSpec(shape=(channels, 8, 8), bounds=(-2.0, 6.0))
    made = capture(randomize(small_conv(channels)), spec=spec)
    expected, found = collect(made, burn_in=0, count=32), []
    for batch in synthesize(made, config(burn_in=0, count=32)):
        found.append(batch.clone())
        batch.zero_()
    assert torch.equal(torch.cat(found), expected)


def test_progress_is_told_after_every_pass(features):
    seen = []
    list(synthesize(features, config(count=12), progress=seen.append))
    assert [(progress.chain, progress.step) for progress in seen] == [
        (chain, step) for chain in (1, 2) for step in range(1, 9)
    ][: len(seen)]
    assert [progress.images for progress in seen] == [0] * 6 + [4, 8] + [8] * 6 + [12]
    assert {(progress.chains, progress.steps, progress.count) for progress in seen} == {(2, 8, 12)}
    assert all(progress.loss > 0 for progress in seen)


def test_batches_are_contiguous_float_tensors_without_gradient(pictures):
    for batch in synthesize(pictures, config()):
        assert batch.dtype == torch.float32
        assert batch.is_contiguous()
        assert not batch.requires_grad


def test_a_set_holds_the_stream_and_where_it_came_from(pictures):
    options = config(count=10)
    made = synthesize_set(pictures, options)
    assert made.inputs.tobytes() == collect(pictures, count=10).numpy().tobytes()
    assert (made.spec, made.config) == (SPEC, options)
    assert [(record.chain, record.step, record.count) for record in made.snapshots] == [(0, 6, 4), (0, 7, 4), (1, 6, 2)]
    assert [record.loss for record in made.snapshots] == [snapshot.loss for snapshot in snapshots(pictures, options)]


@pytest.mark.parametrize(("keep_every", "passes"), [(1, (8, 7)), (4, (7, 7, 7))])
def test_a_set_holds_the_losses_of_all_passes_up_to_the_last_kept_batch(features, keep_every, passes):
    options = config(count=9, keep_every=keep_every)
    made = synthesize_set(features, options)
    walked = [[visit.loss for visit in run_chain(features, options, chain)] for chain in range(len(passes))]
    assert made.losses == tuple(tuple(losses[:count]) for losses, count in zip(walked, passes))
    for snapshot in snapshots(features, options):
        assert snapshot.losses[-1] == snapshot.loss


def test_noise_has_no_losses(features):
    assert synthesize_set(features, SynthesisConfig(generator="noise", count=20)).losses == ((None,), (None,))


def test_a_saved_set_is_the_set_that_was_made(pictures, tmp_path):
    made = synthesize_set(pictures, config())
    made.save(tmp_path / "set.npz")
    assert type(made).load(tmp_path / "set.npz").inputs.tobytes() == made.inputs.tobytes()


def test_synthesis_leaves_the_network_as_it_is(features):
    before = {name: value.clone() for name, value in features.module.state_dict().items()}
    collect(features)
    assert all(torch.equal(value, before[name]) for name, value in features.module.state_dict().items())
    assert all(parameter.grad is None for parameter in features.module.parameters())


# Other generators.


def test_noise_is_kept_as_it_is_even_beyond_the_legal_pixels(pictures):
    made = synthesize_set(pictures, SynthesisConfig(generator="noise", count=8))
    assert made.inputs.shape == (8, 3, 8, 8)
    assert np.unique(made.inputs).size == made.inputs.size
    assert made.snapshots[0].loss is None


def test_uniform_pictures_lie_on_the_pixel_grid(pictures):
    made = synthesize_set(pictures, SynthesisConfig(generator="uniform", count=8)).inputs
    assert np.array_equal(SPEC.from_uint8(SPEC.to_uint8(made)), made)


def test_lookahead_takes_the_gradient_where_the_velocity_leads(features):
    options = config(steps=3, burn_in=0, step_size=0.05, schedule="constant", decay=0.5, variability="none")
    ahead = [visit.images for visit in run_chain(features, dataclasses.replace(options, lookahead=True), 0)]
    behind = [visit.images for visit in run_chain(features, options, 0)]
    assert torch.equal(ahead[1], behind[1])  # no velocity yet
    objective = method_of(features, options).objective
    gradient_at = gradient_of(objective)
    first = gradient_at(ahead[0])[1]
    velocity = first / first.abs().flatten(1).mean(1).reshape(-1, 1, 1, 1)
    looked_at = torch.clamp(ahead[1] - 0.05 * 8 * 0.5 * velocity, -2, 6)
    second = gradient_at(looked_at)[1]
    velocity = 0.5 * velocity + second / second.abs().flatten(1).mean(1).reshape(-1, 1, 1, 1)
    expected = torch.clamp(ahead[1] - 0.05 * 8 * velocity.sign(), -2, 6)
    assert torch.isclose(ahead[2], expected, atol=1e-5).float().mean() > 0.99
    assert not torch.equal(ahead[2], behind[2])


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 16), ({"variability": "variance-tuning"}, 48), ({"generator": "noise"}, 0), ({"generator": "zeroq"}, 500)],
)
def test_passes_of_a_chain_are_counted(options, passes):
    assert passes_per_chain(SynthesisConfig(**options)) == passes


def test_an_experiment_can_bring_its_own_chain(features):
    options = config(count=4)
    method = dataclasses.replace(method_of(features, options), start=lambda *_: torch.zeros(4, 3, 8, 8))
    made = list(snapshots(features, options, run_chain=lambda chain: run_chain(features, options, chain, method)))
    assert sum(len(snapshot.images) for snapshot in made) == 4
    start = next(run_chain(features, options, 0, method)).images
    assert not start.any()


def test_a_batch_that_does_not_fit_is_made_smaller_and_said_so():
    network = captured("conv")
    made = synthesize_set(
        network, SynthesisConfig(count=24, batch_size=16, steps=4), memory_limit=5 * bytes_per_image(network)
    )
    assert made.config.batch_size == 4
    assert len(made) == 24


def test_more_images_than_memory_are_refused_before_any_is_made(pictures, monkeypatch):
    monkeypatch.setattr(synthesis, "physical_memory_bytes", lambda: 8 * 4 * math.prod(pictures.spec.shape))
    assert len(synthesize_set(pictures, config(count=8, batch_size=4))) == 8
    monkeypatch.setattr(synthesis, "chain_of", None)
    with pytest.raises(InputError, match=r"9 images of shape .* in batches of 4 take .*; make fewer, or in smaller"):
        synthesize_set(pictures, config(count=9, batch_size=4))
    with pytest.raises(InputError, match=r"1 images of shape .* in batches of 9 take"):
        synthesize_set(pictures, config(count=1, batch_size=9))


def test_memory_that_runs_out_all_the_same_halves_the_batch(pictures, monkeypatch):
    def short_of_memory(network, config):
        if config.batch_size > 2:
            torch.empty(2**60, dtype=torch.uint8)
        return chain_of(network, config)

    monkeypatch.setattr(synthesis, "chain_of", short_of_memory)
    made = synthesize_set(pictures, config(count=8, batch_size=16))
    assert (made.config.batch_size, len(made)) == (2, 8)
    expected = synthesize_set(pictures, config(count=8, batch_size=2))
    np.testing.assert_array_equal(made.inputs, expected.inputs)
