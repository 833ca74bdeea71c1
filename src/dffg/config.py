"""Options of every stage: frozen, validated when made, free of torch. Defaults are written here and nowhere else.

The command line derives its options from these fields (`help` in the metadata) and the report stores them whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from dffg.errors import InputError
from dffg.targets import ONNXRUNTIME, TARGETS, Target

VARIABILITIES = ("none", "variance-tuning", "random-mask", "random-scale", "input-diversity")
SCHEDULES = ("cosine", "linear", "constant")
STARTS = ("noise", "pictures")
STATISTICS = ("batch", "image")
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
# views of an image teach what the network never sees, and noise leaves its traces in what grows from it.
LEARNING_DEFAULTS: dict[str, Any] = {"slack": 0.0, "variability": "none", "start": "pictures"}
# The attacks as published, turned downhill: MI and NI never forget; VMI has 2 samples in place of 20, which would cost
# 21 passes a step; DI flips and rolls besides. Step size, start and bounds are ours, and the loss, matched exactly.
_ATTACK: dict[str, Any] = {**FAST_GRADIENT_DEFAULTS, "slack": 0.0, "variability": "none"}
# What an option is where it is not given, by generator. A generator that is not listed with an option does not have it:
# it is fixed by its paper and written in `dffg.baselines`.
GENERATOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "dffg": FAST_GRADIENT_DEFAULTS,
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
RANGES = ("minmax", "percentile", "mse", "lp", "sigma")
WEIGHT_RANGES = ("minmax", "mse", "lp")
EQUALIZATIONS = ("auto", "none", "weights", "activations")
ROUNDINGS = ("nearest", "squant")
BIAS_CORRECTIONS = ("none", "analytic", "empirical")
MIXED = "mixed"
SENSITIVITIES = ("kl", "sqnr")
LAYOUTS = ("nchw", "nhwc")
VALUES = ("inputs", "pixels")
_FULL_BITS = 8
# Beyond these, somebody has mistyped.
_MOST = {"count": 10_000_000, "batch_size": 100_000, "steps": 10_000_000}
_MIXED_OPTIONS = ("budget", "activation_bits", "candidate_bits")
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def option(default: Any, help: str, choices: tuple[str, ...] = (), flag: str = "") -> Any:
    """Declare a field together with its help text, so that no second place has to know it.

    `flag` names the command line option where it is not the field's own name.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "flag": flag})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _fill(config: Any, name: str, value: Any) -> None:
    """Give an option that was left out its default."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def _check_choices(config: Any, *names: str) -> None:
    """Of the named options, or of all."""
    for name in names or config.__dataclass_fields__:
        choices, value = config.__dataclass_fields__[name].metadata.get("choices", ()), getattr(config, name)
        _require(not choices or value in choices, f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def _tuned(name: str, help: str, choices: tuple[str, ...] = ()) -> Any:
    """An option whose default depends on the generator; the one shown is that of `dffg`."""
    return option(None, f"{help}  [default: {FAST_GRADIENT_DEFAULTS[name]}, or the generator's]", choices)


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How calibration images are made. Lengths on the pixel axis are fractions of the width of the bounds.

    Options left out are set to the generator's own (`GENERATOR_DEFAULTS`). The fast gradient generators (dffg and the
    -fgsm family) have all of them; for the others, what is not listed there is fixed by their papers, must be left out
    and stays None.
    """

    count: int = option(64, "Images to make.", flag="images")
    generator: str = option("dffg", "What makes the images; others than dffg are for comparison.", GENERATORS)
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
        _require(self.generator in GENERATORS, f"unknown generator {self.generator!r}; choose {', '.join(GENERATORS)}.")
        for name, value in GENERATOR_DEFAULTS[self.generator].items():
            _fill(self, name, value)
        for name in ("count", "batch_size", "steps", "keep_every"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, most in _MOST.items():
            _require(getattr(self, name) <= most, f"{name} is {getattr(self, name)}; it must be at most {most}.")
        harvests = self.is_fast_gradient or self.generator in _KEEP_SNAPSHOTS
        _fill(self, "burn_in", self.steps * 3 // 4 if harvests else self.steps - 1)
        _require(
            0 <= self.burn_in < self.steps,
            f"burn_in is {self.burn_in} with {self.steps} steps; no snapshot would be kept. Choose 0 to steps - 1.",
        )
        _require(
            self.generator not in NOISES or self.steps == 1,
            f"steps is {self.steps}, and {self.generator} makes none; leave it out.",
        )
        _require(self.max_seconds is None or self.max_seconds > 0, f"max_seconds is {self.max_seconds}, not positive.")
        _require(self.slack is None or 0 <= self.slack < 1, f"slack is {self.slack}; choose 0 or more, below 1.")
        if self.is_fast_gradient:
            self._check_fast_gradient()
        else:
            for name in ("step_size", *FAST_GRADIENT_DEFAULTS.keys() - GENERATOR_DEFAULTS[self.generator].keys()):
                _require(
                    getattr(self, name) is None,
                    f"{name} is not an option of the generator {self.generator}, whose method fixes it; leave it out.",
                )

    @property
    def is_fast_gradient(self) -> bool:
        """Whether the generator is ours or one of its settings that have a name of their own."""
        return "decay" in GENERATOR_DEFAULTS[self.generator]

    def for_learning(self, count: int) -> SynthesisConfig:
        """At least so many images to learn from; settings of ours at their defaults become those of learning."""
        changes = {
            name: value
            for name, value in LEARNING_DEFAULTS.items()
            if self.generator == "dffg" and getattr(self, name) == FAST_GRADIENT_DEFAULTS[name]
        }
        return replace(self, count=max(count, self.count), **changes)

    def _check_fast_gradient(self) -> None:
        _fill(self, "step_size", 1 / self.steps)
        _check_choices(self)
        _require(self.variability_samples >= 1, f"variability_samples is {self.variability_samples}, not at least 1.")
        _require(0 <= self.decay <= 1, f"decay is {self.decay}; choose a value from 0 to 1.")
        _require(0 < self.step_size <= 1, f"step_size is {self.step_size}; it must be above 0 and at most 1.")
        _require(
            0 <= self.variability_strength <= 1, f"variability_strength is {self.variability_strength}, not 0 to 1."
        )
        _require(self.start_std >= 0, f"start_std is {self.start_std}; it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class ArrayConfig:
    """How images are written into one array, for other tools."""

    layout: str = option("nchw", "Order of the axes in an .npy file.", LAYOUTS)
    values: str = option("inputs", "What an .npy file holds: network inputs, or pixels from 0 to 255.", VALUES)

    def __post_init__(self) -> None:
        _check_choices(self)


@dataclass(frozen=True)
class Scheme:
    """Bit widths, written W<weights>A<activations>, for example W8A8."""

    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            _require(2 <= bits <= 8, f"{bits} bits are not supported; choose widths from 2 to 8, for example W8A8.")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read `W8A8`, in either case."""
        match = re.fullmatch(r"[wW](\d{1,4})[aA](\d{1,4})", text.strip())
        if match is None:
            raise InputError(f"cannot read bit widths {text!r}; write them like W8A8 (weights 8, activations 8).")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"


def parse_bytes(text: str) -> int:
    """A size like 800MB or 1.5GB, in bytes."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kMG]?B)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise InputError(f"cannot read the size {text!r}; write it like 800MB or 1.5GB.")
    return int(float(match[1]) * _BYTES[match[2].upper()])


@dataclass(frozen=True)
class Budget:
    """What a network of mixed widths may cost, written size=0.5x, size=2MB, bops=0.25x or bits=4.

    kind: size, of the stored weights; bops, bit operations, which are multiplications times the bits of weight and
    activation; bits, of a weight on average. amount: bytes, bits, or, where relative, a share of W8A8.
    """

    kind: str
    amount: float
    relative: bool

    def __str__(self) -> str:
        """As it is read, with four digits behind the point."""
        number = f"{round(self.amount, 4):g}"
        if self.relative:
            return f"{self.kind}={number}x"
        return f"size={self.amount:.0f}B" if self.kind == "size" else f"bits={number}"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read one of the notations above."""
        kind, _, amount = text.strip().partition("=")
        _require(
            kind != "latency",
            "a latency budget cannot be met by bit widths: ONNX Runtime computes all widths from 2 to 8 bits with the "
            "same int8 kernels. Give size=, bops= or bits=.",
        )
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(x|[kMG]?B)?", amount, re.IGNORECASE)
        number, unit = (float(match[1]), (match[2] or "").upper()) if match else (0.0, "")
        if kind in ("size", "bops") and unit == "X":
            _require(0 < number <= 1, f"the budget {text!r} is not above 0 and at most 1x, which is W8A8.")
            return cls(kind, number, relative=True)
        if kind == "size" and unit in _BYTES:
            _require(number > 0, f"the budget {text!r} is nothing; give a size above 0.")
            return cls(kind, number * _BYTES[unit], relative=False)
        if kind == "bits" and match and not unit:
            _require(2 <= number <= 8, f"the budget {text!r} is not from 2 to 8 bits.")
            return cls(kind, number, relative=False)
        raise InputError(f"cannot read the budget {text!r}; write it like size=0.5x, size=2MB, bops=0.25x or bits=4.")


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How ranges are chosen and for which runtime."""

    bits: str = option("W8A8", "Bit widths of weights and activations, 2 to 8; or mixed, chosen to fit --budget.")
    first_last_bits: int | None = option(
        None, "Other width for the first and the last layer's weights and inputs; 8 is common below 8 bits."
    )
    other_bits: int = option(
        8, "Width of activations that no convolution or linear layer reads: operands of sums and of pooling."
    )
    budget: str | None = option(
        None, "For mixed bits: size=0.5x (of the int8 weights), size=2MB, bops=0.25x (of W8A8) or bits=4 (mean weight)."
    )
    sensitivity: str = option(
        "kl", "For mixed bits: what a narrow layer harms, the answer (kl) or its own result (sqnr).", SENSITIVITIES
    )
    sensitivity_images: int = option(16, "For mixed bits: calibration images to measure sensitivities on.")
    activation_bits: int | None = option(
        None, "For mixed bits: width of the activations that the budget does not choose  [default: 8]"
    )
    candidate_bits: str | None = option(
        None, "For mixed bits: widths to choose from  [default: 2,4,8 for a size, 2,3,4,5,6,8 for others]"
    )
    target: str = option(ONNXRUNTIME.name, "Runtime to write for.", tuple(TARGETS))
    activation_ranges: str = option("mse", "How activation ranges are chosen.", RANGES)
    weight_ranges: str = option("mse", "How weight ranges are chosen.", WEIGHT_RANGES)
    percentile: float = option(99.99, "Share of values, in percent, inside a percentile range.")
    norm: float = option(2.4, "Power of the error that lp ranges minimize; mse is 2.")
    equalize: str | None = option(
        None,
        "Even out channels: the ranges of activations, where that helps on the images (auto) or always, or the weights "
        "of consecutive layers  [default: none at 8 bits; auto below]",
        EQUALIZATIONS,
    )
    absorb_biases: bool = option(False, "Move what is positive in nearly all images into the next layer's bias.")
    weight_rounding: str | None = option(
        None, "How weights are rounded  [default: nearest at 8 bits, squant below]", ROUNDINGS
    )
    bias_correction: str | None = option(
        None,
        "How biases make up for the rounded weights: by BatchNorm's statistics, or by the images  [default: none at 8 "
        "bits, analytic below]",
        BIAS_CORRECTIONS,
    )

    def __post_init__(self) -> None:
        _check_choices(self, "target")
        if self.is_mixed:
            self._check_mixed()
        else:
            Scheme.parse(self.bits)
            for name in _MIXED_OPTIONS:
                _require(getattr(self, name) is None, f"{name} is given, and bits is {self.bits}; it needs bits mixed.")
        for bits in (self.first_last_bits, self.other_bits):
            if bits is not None:
                Scheme(bits, bits)
        self._check_target()
        _fill(self, "equalize", "auto" if self._narrows_activations else "none")
        narrow = self.is_mixed or self.scheme.weight_bits < _FULL_BITS
        _fill(self, "weight_rounding", "squant" if narrow else "nearest")
        _fill(self, "bias_correction", "analytic" if narrow else "none")
        _check_choices(self)
        _require(50 < self.percentile <= 100, f"percentile is {self.percentile}; choose a value above 50, up to 100.")
        _require(1 <= self.norm <= 10, f"norm is {self.norm}; choose a power from 1 to 10.")
        _require(self.sensitivity_images >= 1, f"sensitivity_images is {self.sensitivity_images}, not at least 1.")

    @property
    def _narrows_activations(self) -> bool:
        if self.is_mixed:
            return Budget.parse(str(self.budget)).kind == "bops" or self.activation_bits != _FULL_BITS
        return self.scheme.activation_bits < _FULL_BITS

    def _check_target(self) -> None:
        weights = self.candidates if self.is_mixed else (self.scheme.weight_bits,)
        kind = Budget.parse(str(self.budget)).kind if self.is_mixed else None
        inputs = (
            weights if kind == "bops" else (self.activation_bits if self.is_mixed else self.scheme.activation_bits,)
        )
        outer = () if self.first_last_bits is None else (self.first_last_bits,)
        for what, least, widths in (
            ("weights", self.runtime.weight_bits, (*weights, *outer)),
            ("activations", self.runtime.activation_bits, (*inputs, *outer, self.other_bits)),
        ):
            bits = min(width for width in widths if width is not None)
            _require(
                least <= bits,
                f"{self.target} cannot run {what} of {bits} bits; choose {least} or more, or another target.",
            )
        _require(
            kind != "size" or self.runtime.packs,
            f"files for {self.target} store every weight in 8 bits, so no widths reach a size; give bops= or bits=.",
        )

    @property
    def runtime(self) -> Target:
        """What the runtime to write for accepts."""
        return TARGETS[self.target]

    def _check_mixed(self) -> None:
        if self.budget is None:
            raise InputError("bits mixed needs a budget; give one like size=0.5x, bops=0.25x or bits=4.")
        kind = Budget.parse(self.budget).kind
        _fill(self, "activation_bits", _FULL_BITS)
        # A file stores weights in 2, 4 or 8 bits.
        possible = (2, 4, 8) if kind == "size" else (2, 3, 4, 5, 6, 8)
        _fill(self, "candidate_bits", ",".join(str(bits) for bits in possible if bits >= self.runtime.weight_bits))
        for bits in (self.activation_bits, *self.candidates):
            Scheme(bits, bits)  # type: ignore[arg-type]

    @property
    def is_mixed(self) -> bool:
        """Whether every layer has widths of its own."""
        return self.bits == MIXED

    @property
    def scheme(self) -> Scheme:
        """The bit widths, parsed; mixed bits have none."""
        return Scheme.parse(self.bits)

    @property
    def label(self) -> str:
        """The bit widths in words."""
        return f"mixed bits ({self.budget}, A{self.activation_bits})" if self.is_mixed else str(self.scheme)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Widths to choose from where bits are mixed, rising."""
        text = self.candidate_bits or ""
        _require(
            re.fullmatch(r"\d{1,4}(,\d{1,4})*", text) is not None,
            f"cannot read candidate_bits {text!r}; write them like 2,4,8.",
        )
        return tuple(sorted(set(map(int, text.split(",")))))

    def at(self, weight_bits: int, activation_bits: int) -> QuantizationConfig:
        """The same with one width for all weights and one for all activations, outer layers apart."""
        scheme = Scheme(weight_bits, activation_bits)
        return replace(self, bits=str(scheme), **dict.fromkeys(_MIXED_OPTIONS))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """First steps of Adam: of weights in steps of their grid, of scales and biases relative to their size."""

    weight: float
    scale: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How rounding and scales are learned block by block."""

    iterations: int = 300  # Steps of learning per block.
    batch_size: int = 32  # Images of one step.
    rates: Rates = Rates(weight=0.01, scale=2e-3, bias=2e-3)
    reach: float = 0.0  # Steps that a weight may go beyond the two integers beside it.
    drop: float = 0.5  # Share of activations left unquantized while learning.
    bfloat16: bool | None = None  # Whether blocks compute with 8 significant bits; None: where that is faster.
    seed: int = 0  # Seed of every random choice.
    max_seconds: float | None = None  # Time for all blocks; a block ends when its share is used up.


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a quantized network is trained end to end."""

    iterations: int = 300  # Steps of training.
    batch_size: int = 64  # Images of one step.
    rates: Rates = Rates(weight=0.01, scale=1e-3, bias=1e-3)
    reach: float = 1.0  # Steps that a weight may go beyond its integer.
    features: float = 1.0  # Weight of the blocks' results in the loss, beside the answer.
    hard: float = 0.0  # How much images that are answered badly are preferred, 0 to 1.
    boundary: float = 0.0  # Share of images that lie between two others.
    seed: int = 0  # Seed of every random choice.


# What a recipe learns: images, steps per block, and steps of the whole network.
RECIPES: dict[str, dict[str, int]] = {
    "fast": {"learning_images": 0, "reconstruction_steps": 0, "finetune_steps": 0},
    "balanced": {"learning_images": 512, "reconstruction_steps": 200, "finetune_steps": 0},
    "best": {"learning_images": 1024, "reconstruction_steps": 300, "finetune_steps": 200},
}


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """What is learned from the images after ranges are chosen. Options left out are the recipe's."""

    recipe: str | None = option(
        None, "How much is learned from the images  [default: fast, nothing, at 8 bits; balanced below]", tuple(RECIPES)
    )
    learning_images: int = option(None, "Images to learn from; --images of them choose the ranges.")
    reconstruction_steps: int = option(None, "Steps of learning the rounding of every block.")
    finetune_steps: int = option(None, "Steps of training the whole quantized network.")
    learning_seconds: float | None = option(None, "Time for learning the rounding, shared among the blocks.")

    def __post_init__(self) -> None:
        _require(
            self.recipe is None or self.recipe in RECIPES,
            f"unknown recipe {self.recipe!r}; choose {', '.join(RECIPES)}.",
        )
        for name in ("learning_images", "reconstruction_steps", "finetune_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"{name} is {value}; it must not be negative.")
        _require(
            self.learning_seconds is None or self.learning_seconds > 0,
            f"learning_seconds is {self.learning_seconds}, not positive.",
        )

    def completed(self, quantization: QuantizationConfig) -> LearningConfig:
        """With the recipe that fits the widths, and everything that was left out."""
        narrow = quantization.is_mixed or min(quantization.scheme.weight_bits, quantization.scheme.activation_bits) < 8
        recipe = self.recipe or ("balanced" if narrow else "fast")
        given = {name: getattr(self, name) for name in RECIPES[recipe] if getattr(self, name) is not None}
        return replace(self, recipe=recipe, **{**RECIPES[recipe], **given})

    @property
    def learns(self) -> bool:
        """Whether anything is learned, of a completed configuration."""
        return bool(self.reconstruction_steps or self.finetune_steps)
