"""What is learned from images after ranges are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dffg.config.options import check_most, option, require
from dffg.config.quantization import QuantizationConfig


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
    together: int = 2  # Consecutive blocks that are learned as one.
    batch_size: int = 16  # Images of one step.
    rates: Rates = Rates(weight=5e-3, scale=1e-2, bias=2e-3)
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
    "balanced": {"learning_images": 256, "reconstruction_steps": 250, "finetune_steps": 0},
    "best": {"learning_images": 1024, "reconstruction_steps": 500, "finetune_steps": 200},
}
# Beyond these, somebody has mistyped.
_MOST = {"learning_images": 10_000_000, "reconstruction_steps": 10_000_000, "finetune_steps": 10_000_000}


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """What is learned from the images after ranges are chosen. Options left out are the recipe's."""

    recipe: str | None = option(
        None, "How much is learned from the images  [default: fast, nothing, at 8 bits; balanced below]", tuple(RECIPES)
    )
    learning_images: int = option(None, "Images to learn from, at least --images, which choose the ranges.")
    reconstruction_steps: int = option(None, "Steps of learning the rounding of every block.")
    finetune_steps: int = option(None, "Steps of training the whole quantized network.")
    learning_seconds: float | None = option(None, "Time for learning the rounding, shared among the blocks.")

    def __post_init__(self) -> None:
        require(
            self.recipe is None or self.recipe in RECIPES,
            f"unknown recipe {self.recipe!r}; choose {', '.join(RECIPES)}.",
        )
        for name in ("learning_images", "reconstruction_steps", "finetune_steps"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} is {value}; it must not be negative.")
        check_most(self, _MOST)
        require(
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
