"""How images are made and how they are handed over to other tools."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dffg.config.options import check_choices, check_most, fill, option, require

VARIABILITIES = ("none", "variance-tuning", "random-mask", "random-scale", "input-diversity")
SCHEDULES = ("cosine", "linear", "constant")
STARTS = ("noise", "pictures")
STATISTICS = ("batch", "image")
DFFG = "dffg"
FAST_GRADIENT_DEFAULTS: dict[str, Any] = {
    "batch_size": 16,
    "steps": 16,
    "decay": 0.7,
    "lookahead": False,
    "schedule": "cosine",
    "start": "noise",
    "start_std": 0.25,
    "statistics": "batch",
    "slack": 0.2,
    "variability": "input-diversity",
    "variability_strength": 0.5,
    "variability_samples": 2,
}
# What differs where images are learned from and do not only set ranges: there, nearer to the statistics is better,
# views of an image teach what the network never sees, noise leaves its traces in what grows from it, and images on the
# way are too much like the last one. What stands together changes together.
LEARNING_DEFAULTS: tuple[dict[str, Any], ...] = (
    {"slack": 0.0},
    {"variability": "none"},
    {"start": "pictures"},
    {"steps": 48, "burn_in": 47, "step_size": 1 / 48},
)
# The attacks as published, turned downhill; `dffg.synthesis.baselines` names the paper of each and where we differ.
_ATTACK: dict[str, Any] = {**FAST_GRADIENT_DEFAULTS, "slack": 0.0, "variability": "none"}
# What an option is where it is not given, by generator. A generator that is not listed with an option does not have it:
# it is fixed by its paper and written in `dffg.synthesis.baselines`.
GENERATOR_DEFAULTS: dict[str, dict[str, Any]] = {
    DFFG: FAST_GRADIENT_DEFAULTS,
    "i-fgsm": {**_ATTACK, "decay": 0.0},
    "mi-fgsm": {**_ATTACK, "decay": 1.0},
    "ni-fgsm": {**_ATTACK, "decay": 1.0, "lookahead": True},
    "vmi-fgsm": {**_ATTACK, "decay": 1.0, "variability": "variance-tuning", "variability_strength": 0.4},
    "di-fgsm": {**_ATTACK, "decay": 0.0, "variability": "input-diversity"},
    "noise": {"batch_size": 16, "steps": 1},
    "uniform": {"batch_size": 16, "steps": 1},
    "ones": {"batch_size": 16, "steps": 1},
    "sigma-noise": {"batch_size": 16, "steps": 1},
    "zeroq": {"batch_size": 64, "steps": 500},
    "dsg": {"batch_size": 40, "steps": 500},
    "deepinversion": {"batch_size": 64, "steps": 2000},
    "dgh": {"batch_size": 32, "steps": 500},
    "genie": {"batch_size": 128, "steps": 4000},
    "adam-snapshots": {"batch_size": 16, "steps": 16, "slack": FAST_GRADIENT_DEFAULTS["slack"]},
}
GENERATORS = tuple(GENERATOR_DEFAULTS)
NOISES = ("noise", "uniform", "ones", "sigma-noise")
# Whose statistics are those of the whole set, which one chain makes.
JOINT = ("dgh",)
# These keep images on the way, as ours does; the others keep what they end with.
_KEEP_SNAPSHOTS = ("adam-snapshots",)
LAYOUTS = ("nchw", "nhwc")
VALUES = ("inputs", "pixels")
# Beyond these, somebody has mistyped.
_MOST = {"count": 10_000_000, "batch_size": 100_000, "steps": 10_000_000, "variability_samples": 1000}


def _tuned(name: str, help: str, choices: tuple[str, ...] = ()) -> Any:
    """An option whose default depends on the generator; the one shown is that of `dffg`."""
    return option(None, f"{help}  [default: {FAST_GRADIENT_DEFAULTS[name]}, or the generator's]", choices)


# The number of a chain is put behind a seed, and both fit into the 64 bits that torch takes.
MOST_SEED = 2**43


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How calibration images are made. Lengths on the pixel axis are fractions of the width of the bounds.

    Options left out are set to the generator's own (`GENERATOR_DEFAULTS`). The fast gradient generators (dffg and the
    -fgsm family) have all of them; for the others, what is not listed there is fixed by their papers, must be left out
    and stays None.
    """

    count: int = option(64, "Images to make.", flag="images")
    generator: str = option(DFFG, "What makes the images; others than dffg are for comparison.", GENERATORS)
    seed: int = option(0, "Seed of every random choice.")
    max_seconds: float | None = option(None, "Stop synthesis after this time with the images made so far.")
    batch_size: int = _tuned("batch_size", "Images that walk together in one chain.")
    steps: int = _tuned("steps", "Forward and backward passes of one chain.")
    burn_in: int = option(None, "Passes before the first snapshot of a chain is kept  [default: 3/4 of the steps]")
    keep_every: int = option(1, "Keep every n-th snapshot after the burn-in.")
    step_size: float = option(None, "First step, as a fraction of the pixel range  [default: 1/steps]")
    decay: float = _tuned("decay", "Decay of the accumulated gradient; 0 is plain iterative FGSM.")
    lookahead: bool = _tuned("lookahead", "Take the gradient where the accumulated one leads (Nesterov).")
    schedule: str = _tuned("schedule", "How the step shrinks along a chain.", SCHEDULES)
    start: str = _tuned("start", "What chains start from: noise, or shapes and clouds drawn at random.", STARTS)
    start_std: float = _tuned("start_std", "Standard deviation of the starting noise, as a fraction of the range.")
    statistics: str = _tuned("statistics", "Take activation statistics over the batch or per image.", STATISTICS)
    slack: float = _tuned("slack", "Errors of a statistic that cost nothing, in deviations of its channel.")
    variability: str = _tuned("variability", "How the gradient is varied for diversity.", VARIABILITIES)
    variability_strength: float = _tuned("variability_strength", "Strength of the variability, 0 to 1.")
    variability_samples: int = _tuned("variability_samples", "Extra gradients per step of variance tuning.")

    def __post_init__(self) -> None:
        require(self.generator in GENERATORS, f"unknown generator {self.generator!r}; choose {', '.join(GENERATORS)}.")
        for name, value in GENERATOR_DEFAULTS[self.generator].items():
            fill(self, name, value)
        for name in ("count", "batch_size", "steps", "keep_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_most(self, _MOST)
        require(abs(self.seed) <= MOST_SEED, f"seed is {self.seed}; choose a number from {-MOST_SEED} to {MOST_SEED}.")
        harvests = self.is_fast_gradient or self.generator in _KEEP_SNAPSHOTS
        fill(self, "burn_in", self.steps * 3 // 4 if harvests else self.steps - 1)
        require(
            0 <= self.burn_in < self.steps,
            f"burn_in is {self.burn_in} with {self.steps} steps; no snapshot would be kept. Choose 0 to steps - 1.",
        )
        require(
            self.generator not in NOISES or self.steps == 1,
            f"steps is {self.steps}, and {self.generator} makes none; leave it out.",
        )
        require(self.max_seconds is None or self.max_seconds > 0, f"max_seconds is {self.max_seconds}, not positive.")
        require(self.slack is None or 0 <= self.slack < 1, f"slack is {self.slack}; choose 0 or more, below 1.")
        if self.is_fast_gradient:
            self._check_fast_gradient()
        else:
            for name in ("step_size", *FAST_GRADIENT_DEFAULTS.keys() - GENERATOR_DEFAULTS[self.generator].keys()):
                require(
                    getattr(self, name) is None,
                    f"{name} is not an option of the generator {self.generator}, whose method fixes it; leave it out.",
                )

    @property
    def is_fast_gradient(self) -> bool:
        """Whether the generator is ours or one of its settings that have a name of their own."""
        return "decay" in GENERATOR_DEFAULTS[self.generator]

    def for_learning(self, count: int) -> SynthesisConfig:
        """At least so many images to learn from; settings of ours at their defaults become those of learning.

        Steps of a chain are changed together, or not at all.
        """
        changes: dict[str, Any] = {"count": max(count, self.count)}
        if self.generator == DFFG:
            usual = SynthesisConfig()
            for group in LEARNING_DEFAULTS:
                if all(getattr(self, name) == getattr(usual, name) for name in group):
                    changes |= group
        return replace(self, **changes)

    def _check_fast_gradient(self) -> None:
        fill(self, "step_size", 1 / self.steps)
        check_choices(self)
        require(self.variability_samples >= 1, f"variability_samples is {self.variability_samples}, not at least 1.")
        require(0 <= self.decay <= 1, f"decay is {self.decay}; choose a value from 0 to 1.")
        require(0 < self.step_size <= 1, f"step_size is {self.step_size}; it must be above 0 and at most 1.")
        require(
            0 <= self.variability_strength <= 1, f"variability_strength is {self.variability_strength}, not 0 to 1."
        )
        require(self.start_std >= 0, f"start_std is {self.start_std}; it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class ArrayConfig:
    """How images are written into one array, for other tools."""

    layout: str = option("nchw", "Order of the axes in an .npy file.", LAYOUTS)
    values: str = option("inputs", "What an .npy file holds: network inputs, or pixels from 0 to 255.", VALUES)

    def __post_init__(self) -> None:
        check_choices(self)
