"""What holds for every baseline, whatever its formula."""

from __future__ import annotations

import pytest
import torch

from dffg.config import GENERATORS, NOISES, SynthesisConfig
from dffg.errors import InputError
from dffg.graph.captured import capture
from dffg.spec import ImageSpec
from dffg.synthesis.baselines import BASELINES
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import dead_channels, network
from tests.synthesis.baselines import config, features, legal, losses, pictures

OPTIMIZED = [name for name in BASELINES if name not in NOISES]
CLIPPED = ["deepinversion", "dgh", "adam-snapshots"]


def last(name, captured, chain=0, **options):
    return list(BASELINES[name](captured, config(name, **options), chain))[-1].images


def test_every_generator_that_is_not_a_fast_gradient_is_here():
    assert set(BASELINES) == {name for name in GENERATORS if not SynthesisConfig(generator=name).is_fast_gradient}


@pytest.mark.parametrize("name", BASELINES)
def test_same_seed_same_bytes_and_the_global_state_is_left_alone(name):
    _, captured = pictures()
    state = torch.get_rng_state()
    first = last(name, captured)
    torch.rand(3)
    assert torch.equal(first, last(name, captured))
    torch.set_rng_state(state)
    last(name, captured)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(BASELINES.keys() - {"ones"}))
def test_other_seeds_and_other_chains_give_other_images(name):
    _, captured = pictures()
    first = last(name, captured)
    assert not torch.allclose(first, last(name, captured, seed=1), atol=1e-3)
    assert not torch.allclose(first, last(name, captured, chain=1), atol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZED)
def test_the_loss_falls(name):
    _, captured = pictures()
    walked = losses(BASELINES[name](captured, config(name, steps=40), 0))
    assert len(walked) == 40
    assert walked[-1] < 0.9 * walked[0]


@pytest.mark.parametrize("name", CLIPPED)
def test_every_visit_keeps_to_the_bounds(name):
    for captured in (pictures()[1], features()):
        visits = list(BASELINES[name](captured, config(name), 0))
        assert all(legal(visit.images, captured.spec) for visit in visits)


@pytest.mark.parametrize("name", OPTIMIZED)
def test_visits_are_not_changed_by_later_steps(name):
    _, captured = pictures()
    visits = [(visit.images, visit.images.clone()) for visit in BASELINES[name](captured, config(name), 0)]
    assert all(torch.equal(kept, copy) for kept, copy in visits)
    assert not any(visit.requires_grad for visit, _ in visits)
    assert not torch.equal(visits[0][0], visits[-1][0])


@pytest.mark.parametrize("name", BASELINES)
def test_features_in_batches_that_do_not_divide_the_count(name):
    made = synthesize_set(
        features(), SynthesisConfig(generator=name, count=7, batch_size=3, steps=2 if name in OPTIMIZED else 1)
    )
    assert made.inputs.shape == (7, 1, 8, 8)
    assert torch.from_numpy(made.inputs).isfinite().all()
    assert sum(snapshot.count for snapshot in made.snapshots) == 7


@pytest.mark.parametrize("name", OPTIMIZED)
def test_channels_that_never_varied_stay_finite(name):
    captured = capture(dead_channels(), spec=ImageSpec(shape=(3, 6, 6)))
    assert captured.zero_variance_channels == 2
    made = last(name, captured, steps=5)
    assert made.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZED)
@pytest.mark.parametrize("kind", ["sequence", "volumes", "linear", "pre-activation", "after-concat", "shared"])
def test_networks_of_every_kind(name, kind):
    model, shape = network(kind)
    captured = capture(model, spec=ImageSpec(shape=shape))
    made = last(name, captured, steps=3)
    assert made.shape == (4, *shape)
    assert made.isfinite().all()


@pytest.mark.parametrize(
    "option", [{"decay": 0.5}, {"step_size": 0.1}, {"variability": "none"}, {"statistics": "image"}]
)
@pytest.mark.parametrize("name", BASELINES)
def test_options_of_ours_are_refused(name, option):
    with pytest.raises(InputError, match="not an option of the generator"):
        config(name, **option)
