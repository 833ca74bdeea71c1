"""How ranges and integers are chosen, and for which runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from dffg.config.notation import Budget, Scheme, require_width
from dffg.config.options import check_choices, fill, option, require
from dffg.errors import InputError
from dffg.targets import ONNXRUNTIME, TARGETS, Target

RANGES = ("minmax", "percentile", "mse", "lp", "sigma")
WEIGHT_RANGES = ("minmax", "mse", "lp")
EQUALIZATIONS = ("auto", "none", "weights", "activations")
ROUNDINGS = ("nearest", "squant")
BIAS_CORRECTIONS = ("none", "analytic", "empirical")
MIXED = "mixed"
SENSITIVITIES = ("kl", "sqnr")
_FULL_BITS = 8
_MIXED_OPTIONS = ("budget", "activation_bits", "candidate_bits")


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How ranges, integers and biases are chosen, and for which runtime."""

    bits: str = option("W8A8", "Bit widths of weights and activations, 2 to 8; or mixed, chosen to fit --budget.")
    first_last_bits: int | None = option(
        None,
        "Other width for the first and the last layer's weights and inputs, and the first one's result; 8 is common "
        "below 8 bits.",
    )
    other_bits: int = option(
        8, "Width of activations that others than convolutions and linear layers read: operands of sums and of pooling."
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
    reduce_range: bool | None = option(
        None,
        "Keep 8-bit weights within 7 bits, as x86 CPUs without VNNI need: they add products in 16 bits  [default: as "
        "this CPU needs]",
    )
    target: str = option(ONNXRUNTIME.name, "Runtime to write for.", tuple(TARGETS))
    activation_ranges: str = option("mse", "How activation ranges are chosen.", RANGES)
    weight_ranges: str = option("mse", "How weight ranges are chosen.", WEIGHT_RANGES)
    percentile: float = option(99.99, "Share of values, in percent, inside a percentile range.")
    norm: float = option(2.4, "Power of the error that lp ranges minimize; mse is 2.")
    equalize: str | None = option(
        None,
        "Even out channels: the ranges of activations, where that helps on the images (auto) or always, or the weights "
        "of consecutive layers  [default: none with activations of 8 bits; auto below]",
        EQUALIZATIONS,
    )
    absorb_biases: bool = option(False, "Move what is positive in nearly all images into the next layer's bias.")
    weight_rounding: str = option(
        "squant",
        "How weights are rounded: so that errors cancel within kernels and channels, or to the nearest.",
        ROUNDINGS,
    )
    bias_correction: str = option(
        "analytic",
        "How biases make up for the rounded weights: by BatchNorm's statistics, or by the images.",
        BIAS_CORRECTIONS,
    )

    def __post_init__(self) -> None:
        check_choices(self, "target")
        if self.is_mixed:
            self._check_mixed()
        else:
            Scheme.parse(self.bits)
            for name in _MIXED_OPTIONS:
                require(getattr(self, name) is None, f"{name} is given, and bits is {self.bits}; it needs bits mixed.")
        for name in ("first_last_bits", "other_bits"):
            bits = getattr(self, name)
            if bits is not None:
                require_width(bits, f"{name} is {bits}, and ")
        self._check_target()
        narrow = self.budget_kind == "bops" or self.input_bits < _FULL_BITS
        fill(self, "equalize", "auto" if narrow else "none")
        check_choices(self)
        require(50 < self.percentile <= 100, f"percentile is {self.percentile}; choose a value above 50, up to 100.")
        require(1 <= self.norm <= 10, f"norm is {self.norm}; choose a power from 1 to 10.")
        require(self.sensitivity_images >= 1, f"sensitivity_images is {self.sensitivity_images}, not at least 1.")

    def _check_target(self) -> None:
        weights = self.candidates if self.is_mixed else (self.scheme.weight_bits,)
        inputs = self.candidates if self.budget_kind == "bops" else (self.input_bits,)
        outer = () if self.first_last_bits is None else (self.first_last_bits,)
        for what, least, widths in (
            ("weights", self.rules.weight_bits, (*weights, *outer)),
            ("activations", self.rules.activation_bits, (*inputs, *outer, self.other_bits)),
        ):
            bits = min(widths)
            require(
                least <= bits,
                f"{self.target} cannot run {what} of {bits} bits; choose {least} or more, or another target.",
            )
        require(
            self.budget_kind != "size" or self.rules.packs,
            f"files for {self.target} store every weight in 8 bits, so no widths reach a size; give bops= or bits=.",
        )

    @property
    def rules(self) -> Target:
        """What the runtime to write for accepts."""
        return TARGETS[self.target]

    def _check_mixed(self) -> None:
        if self.budget is None:
            raise InputError("bits mixed needs a budget; give one like size=0.5x, bops=0.25x or bits=4.")
        # A file stores weights in 2, 4 or 8 bits.
        possible = (2, 4, 8) if self.budget_kind == "size" else (2, 3, 4, 5, 6, 8)
        fill(self, "activation_bits", _FULL_BITS)
        fill(self, "candidate_bits", ",".join(str(bits) for bits in possible if bits >= self.rules.weight_bits))
        for bits in (self.input_bits, *self.candidates):
            require_width(bits)

    @property
    def is_mixed(self) -> bool:
        """Whether every layer has widths of its own."""
        return self.bits == MIXED

    @property
    def scheme(self) -> Scheme:
        """The bit widths, parsed; mixed bits have none."""
        return Scheme.parse(self.bits)

    @property
    def budget_kind(self) -> str | None:
        """What a budget limits; None where bits are not mixed."""
        return None if self.budget is None else Budget.parse(self.budget).kind

    @property
    def input_bits(self) -> int:
        """Width of what layers read, where no budget chooses it."""
        return self.scheme.activation_bits if self.activation_bits is None else self.activation_bits

    @property
    def label(self) -> str:
        """The bit widths in words."""
        return f"mixed bits ({self.budget}, A{self.activation_bits})" if self.is_mixed else str(self.scheme)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Widths to choose from where bits are mixed, rising."""
        text = self.candidate_bits or ""
        require(
            re.fullmatch(r"\d{1,4}(,\d{1,4})*", text) is not None,
            f"cannot read candidate_bits {text!r}; write them like 2,4,8.",
        )
        return tuple(sorted(set(map(int, text.split(",")))))

    def at(self, weight_bits: int, activation_bits: int) -> QuantizationConfig:
        """The same with one width for all weights and one for all activations, outer layers apart."""
        scheme = Scheme(weight_bits, activation_bits)
        return replace(self, bits=str(scheme), **dict.fromkeys(_MIXED_OPTIONS))  # type: ignore[arg-type]
