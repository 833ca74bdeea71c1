import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dffg.config import (
    GENERATORS,
    RECIPES,
    Budget,
    LearningConfig,
    QuantizationConfig,
    Scheme,
    SynthesisConfig,
    parse_bytes,
)
from dffg.errors import InputError

NAN = float("nan")


def test_options_are_free_of_torch():
    code = "import sys; sys.modules['torch'] = None; import dffg.config, dffg.images, dffg.errors"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("config", [SynthesisConfig, QuantizationConfig, LearningConfig])
def test_every_option_has_a_help_text_and_a_legal_default(config):
    for option in dataclasses.fields(config):
        assert option.metadata["help"]
        choices = option.metadata["choices"]
        assert not choices or option.default is None or option.default in choices


@pytest.mark.parametrize("config", [SynthesisConfig(), QuantizationConfig()])
def test_options_are_frozen(config):
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def test_every_generator_has_its_own_defaults():
    assert (SynthesisConfig().decay, SynthesisConfig(generator="mi-fgsm").decay) == (0.7, 1.0)
    assert SynthesisConfig(generator="i-fgsm", decay=0.3).decay == 0.3
    assert SynthesisConfig(generator="ni-fgsm").lookahead
    assert SynthesisConfig(generator="vmi-fgsm").variability == "variance-tuning"
    zeroq = SynthesisConfig(generator="zeroq")
    assert (zeroq.steps, zeroq.burn_in, zeroq.batch_size) == (500, 499, 64)
    assert SynthesisConfig(generator="adam-snapshots").burn_in == 12


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_stored_configuration_can_be_read_back(generator):
    config = SynthesisConfig(generator=generator, count=5, seed=3)
    assert SynthesisConfig(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    "option", [{"decay": 0.7}, {"step_size": 0.1}, {"variability": "none"}, {"statistics": "batch"}], ids=str
)
def test_options_of_ours_are_refused_for_other_methods(option):
    with pytest.raises(InputError, match=f"{next(iter(option))} is not an option of the generator zeroq"):
        SynthesisConfig(generator="zeroq", **option)


def test_an_unknown_generator_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="zeroq"):
        SynthesisConfig(generator="zero-q")


def test_burn_in_and_step_size_follow_the_steps():
    assert (SynthesisConfig(steps=16).burn_in, SynthesisConfig(steps=16).step_size) == (12, 1 / 16)
    assert (SynthesisConfig(steps=10).burn_in, SynthesisConfig(steps=10).step_size) == (7, 0.1)
    assert (SynthesisConfig(steps=1).burn_in, SynthesisConfig(steps=1).step_size) == (0, 1.0)


def test_given_burn_in_and_step_size_are_kept():
    config = SynthesisConfig(steps=16, burn_in=0, step_size=0.5)
    assert (config.burn_in, config.step_size) == (0, 0.5)


@given(st.integers(1, 500))
def test_any_number_of_steps_keeps_a_snapshot_by_default(steps):
    assert 0 <= SynthesisConfig(steps=steps).burn_in < steps


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"batch_size": 0},
        {"steps": 0},
        {"keep_every": 0},
        {"variability_samples": 0},
        {"steps": 4, "burn_in": 4},
        {"burn_in": -1},
        {"decay": -0.1},
        {"decay": 1.1},
        {"decay": NAN},
        {"step_size": 0.0},
        {"step_size": 1.5},
        {"step_size": NAN},
        {"start_std": -1.0},
        {"start_std": NAN},
        {"slack": -0.1},
        {"slack": 1.0},
        {"slack": NAN},
        {"variability_strength": -0.1},
        {"variability_strength": 1.1},
        {"max_seconds": 0.0},
        {"max_seconds": -1.0},
        {"schedule": "square"},
        {"statistics": "layer"},
        {"variability": "noise"},
    ],
    ids=str,
)
def test_an_impossible_synthesis_is_refused_by_name(options):
    with pytest.raises(InputError, match=list(options)[-1]):
        SynthesisConfig(**options)


@pytest.mark.parametrize(
    ("config", "name", "most"),
    [
        (SynthesisConfig, "count", 10_000_000),
        (SynthesisConfig, "batch_size", 100_000),
        (SynthesisConfig, "steps", 10_000_000),
        (SynthesisConfig, "variability_samples", 1000),
        (LearningConfig, "learning_images", 10_000_000),
        (LearningConfig, "reconstruction_steps", 10_000_000),
        (LearningConfig, "finetune_steps", 10_000_000),
    ],
)
def test_what_nobody_can_mean_is_refused(config, name, most):
    assert getattr(config(**{name: most}), name) == most
    with pytest.raises(InputError, match=f"{name} is {most + 1}; it must be at most {most}"):
        config(**{name: most + 1})


@pytest.mark.parametrize("sign", [1, -1])
def test_seeds_that_torch_has_no_room_for_are_refused(sign):
    assert SynthesisConfig(seed=sign * 2**43).seed == sign * 2**43
    with pytest.raises(
        InputError, match=r"seed is -?8796093022209; choose a number from -8796093022208 to 8796093022208"
    ):
        SynthesisConfig(seed=sign * (2**43 + 1))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4, "burn_in": 3},
        {"decay": 0.0},
        {"decay": 1.0},
        {"step_size": 1.0},
        {"start_std": 0.0},
        {"slack": 0.0},
        {"variability_strength": 0.0},
        {"variability_strength": 1.0},
        {"max_seconds": 0.1},
    ],
    ids=str,
)
def test_the_ends_of_each_interval_are_legal(options):
    assert SynthesisConfig(**options) is not None


def test_a_wrong_choice_lists_the_right_ones():
    with pytest.raises(InputError, match=r"schedule is 'square'; choose one of cosine, linear, constant\."):
        SynthesisConfig(schedule="square")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 50.0}, "percentile is 50"),
        ({"percentile": 100.1}, "percentile"),
        ({"percentile": NAN}, "percentile"),
        ({"bits": "W9A8"}, "9 bits"),
        ({"bits": "W8A1"}, "1 bits"),
        ({"bits": "8"}, "W8A8"),
        ({"target": "tpu"}, "target"),
        ({"activation_ranges": "best"}, "minmax, percentile, mse"),
        ({"weight_ranges": "percentile"}, "weight_ranges"),
        ({"norm": 0.9}, "norm is 0.9"),
        ({"norm": 10.1}, "norm"),
        ({"norm": NAN}, "norm"),
        ({"weight_rounding": "up"}, "nearest, squant"),
        ({"bias_correction": "both"}, "none, analytic, empirical"),
    ],
)
def test_an_impossible_quantization_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**options)


@given(st.integers(2, 8), st.integers(2, 8))
def test_a_scheme_reads_what_it_writes(weight_bits, activation_bits):
    scheme = Scheme(weight_bits, activation_bits)
    assert str(scheme) == f"W{weight_bits}A{activation_bits}"
    assert Scheme.parse(str(scheme).lower()) == scheme


def test_weights_come_first_in_a_scheme():
    scheme = QuantizationConfig(bits="w4a8").scheme
    assert (scheme.weight_bits, scheme.activation_bits) == (4, 8)


@pytest.mark.parametrize("text", ["", "W8", "A8W8", "W8A8x", "int8", "W-8A8", "W8.0A8", "W4A" + 5000 * "8"])
def test_what_is_no_scheme_is_refused(text):
    with pytest.raises(InputError, match="W8A8"):
        Scheme.parse(text)


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize("name", ["first_last_bits", "other_bits"])
def test_a_width_that_does_not_exist_is_named(name, bits):
    with pytest.raises(InputError, match=f"^{name} is {bits}, and {bits} bits are not supported"):
        QuantizationConfig(**{name: bits})


@pytest.mark.parametrize(
    ("text", "kind", "amount", "relative"),
    [
        ("size=0.5x", "size", 0.5, True),
        ("size=.25X", "size", 0.25, True),
        ("size=2MB", "size", 2_000_000, False),
        ("size=1.5kB", "size", 1500, False),
        ("size=800B", "size", 800, False),
        (" bops=1x ", "bops", 1.0, True),
        ("bits=4", "bits", 4.0, False),
        ("bits=2.75", "bits", 2.75, False),
    ],
)
def test_a_budget_is_read_and_written(text, kind, amount, relative):
    budget = Budget.parse(text)
    assert budget == Budget(kind, amount, relative)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size",
        "size=",
        "size=0.5",
        "size=2TB",
        "size=-1x",
        "bops=5",
        "bops=5B",
        "bits=4x",
        "bits=4B",
        "speed=2x",
        "4",
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match=r"write it like size=0\.5x, size=2MB, bops=0\.25x or bits=4"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["size=0x", "size=1.1x", "bops=2x", "size=0B", "bits=1.9", "bits=9"])
def test_a_budget_without_meaning_is_refused(text):
    with pytest.raises(InputError, match=f"the budget '{text}' is"):
        Budget.parse(text)


def test_a_latency_budget_is_refused_with_the_reason():
    with pytest.raises(InputError, match="computes all widths from 2 to 8 bits with the same int8 kernels"):
        QuantizationConfig(bits="mixed", budget="latency=0.5x")


def test_mixed_bits_have_candidates_that_a_file_can_hold():
    size = QuantizationConfig(bits="mixed", budget="size=0.5x")
    assert (size.candidates, size.activation_bits, size.is_mixed) == ((2, 4, 8), 8, True)
    assert QuantizationConfig(bits="mixed", budget="bits=4").candidates == (2, 3, 4, 5, 6, 8)
    assert QuantizationConfig(bits="mixed", budget="bits=4", candidate_bits="8,3,3").candidates == (3, 8)
    assert QuantizationConfig(**dataclasses.asdict(size)) == size


def test_mixed_bits_at_one_width_are_an_ordinary_configuration():
    mixed = QuantizationConfig(bits="mixed", budget="size=0.5x", first_last_bits=7, activation_ranges="minmax")
    assert mixed.at(3, 6) == QuantizationConfig(
        bits="W3A6", first_last_bits=7, activation_ranges="minmax", equalize="none"
    )
    assert (mixed.label, mixed.at(3, 6).label) == ("mixed bits (size=0.5x, A8)", "W3A6")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "mixed"}, "bits mixed needs a budget"),
        ({"bits": "mixed", "budget": "all"}, "cannot read the budget 'all'"),
        ({"bits": "mixed", "budget": "bits=4", "candidate_bits": "2;4"}, "cannot read candidate_bits '2;4'"),
        ({"bits": "mixed", "budget": "bits=4", "candidate_bits": 5000 * "8"}, "cannot read candidate_bits"),
        ({"bits": "mixed", "budget": "bits=4", "candidate_bits": "4,9"}, "9 bits are not supported"),
        ({"bits": "mixed", "budget": "bits=4", "activation_bits": 1}, "1 bits are not supported"),
        ({"bits": "mixed", "budget": "bits=4", "sensitivity": "guess"}, "choose one of kl, sqnr"),
        ({"bits": "mixed", "budget": "bits=4", "sensitivity_images": 0}, "sensitivity_images is 0"),
        ({"budget": "bits=4"}, "budget is given, and bits is W8A8"),
        ({"activation_bits": 4}, "activation_bits is given"),
        ({"candidate_bits": "2,4"}, "candidate_bits is given"),
    ],
)
def test_impossible_mixed_bits_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**options)


@pytest.mark.parametrize(
    ("bits", "recipe"), [("W8A8", "fast"), ("W4A8", "balanced"), ("W8A4", "balanced"), ("mixed", "balanced")]
)
def test_something_is_learned_below_eight_bits(bits, recipe):
    quantization = QuantizationConfig(bits=bits, budget="bits=4" if bits == "mixed" else None)
    completed = LearningConfig().completed(quantization)
    assert completed.recipe == recipe
    assert completed.learns == (recipe != "fast")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fills_what_is_left_out_and_nothing_else(recipe):
    completed = LearningConfig(recipe=recipe, reconstruction_steps=7).completed(QuantizationConfig())
    assert completed.reconstruction_steps == 7
    assert completed.learning_images == RECIPES[recipe]["learning_images"]
    assert completed.finetune_steps == RECIPES[recipe]["finetune_steps"]
    assert completed.completed(QuantizationConfig()) == completed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "slow"}, "unknown recipe 'slow'; choose fast, balanced, best"),
        ({"finetune_steps": -1}, "finetune_steps is -1; it must not be negative"),
        ({"learning_seconds": 0}, "learning_seconds is 0, not positive"),
    ],
)
def test_what_cannot_be_learned_with_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        LearningConfig(**options)


def test_images_to_learn_from_are_matched_exactly_and_without_views_unless_asked_otherwise():
    default = SynthesisConfig(count=64, seed=3)
    learning = default.for_learning(512)
    assert (learning.count, learning.slack, learning.variability, learning.start) == (512, 0.0, "none", "pictures")
    assert (learning.steps, learning.burn_in, learning.step_size) == (48, 47, 1 / 48)
    changed = ("count", "slack", "variability", "start", "steps", "burn_in", "step_size")
    same = {name: getattr(default, name) for name in changed}
    assert dataclasses.replace(learning, **same) == default
    asked = SynthesisConfig(count=600, slack=0.1, variability="random-mask").for_learning(512)
    assert (asked.count, asked.slack, asked.variability) == (600, 0.1, "random-mask")
    assert SynthesisConfig(generator="zeroq").for_learning(512).slack is None
    assert learning.for_learning(512) == learning


@pytest.mark.parametrize("asked", [{"steps": 20}, {"burn_in": 8}, {"step_size": 0.1}])
def test_a_chain_to_learn_from_is_as_asked_where_anything_of_it_is(asked):
    default = SynthesisConfig(**asked)
    learning = default.for_learning(512)
    for name in ("steps", "burn_in", "step_size"):
        assert getattr(learning, name) == getattr(default, name)
    assert learning.start == "pictures"


@pytest.mark.parametrize(("text", "size"), [("800MB", 800_000_000), ("1.5GB", 1_500_000_000), (" 64kB", 64_000)])
def test_sizes_are_read_in_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["2", "GB", "-1GB", "0GB", "0.5B", "2 GB", "2x", f"{10**400}GB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"1\.5GB"):
        parse_bytes(text)


@pytest.mark.parametrize("read", [parse_bytes, lambda text: Budget.parse(f"size={text}")], ids=["size", "budget"])
def test_a_million_digits_are_refused_at_once(read):
    """Trying where they could be split takes hours."""
    with pytest.raises(InputError, match="cannot read the"):
        read("9" * 10**6)
