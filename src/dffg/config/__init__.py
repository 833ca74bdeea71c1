"""Options of every stage: frozen, validated when made, free of torch. Defaults are written here and nowhere else.

The command line derives its options from these fields (`help` in the metadata) and the report stores them whole.
"""

from dffg.config.learning import RECIPES, FinetuneConfig, LearningConfig, Rates, ReconstructionConfig
from dffg.config.notation import AUTO, Budget, Scheme, parse_bytes
from dffg.config.quantization import RANGES, WEIGHT_RANGES, QuantizationConfig
from dffg.config.synthesis import (
    GENERATORS,
    JOINT,
    MOST_SEED,
    NOISES,
    SCHEDULES,
    VARIABILITIES,
    ArrayConfig,
    SynthesisConfig,
)

__all__ = [
    "AUTO",
    "GENERATORS",
    "JOINT",
    "MOST_SEED",
    "NOISES",
    "RANGES",
    "RECIPES",
    "SCHEDULES",
    "VARIABILITIES",
    "WEIGHT_RANGES",
    "ArrayConfig",
    "Budget",
    "FinetuneConfig",
    "LearningConfig",
    "QuantizationConfig",
    "Rates",
    "ReconstructionConfig",
    "Scheme",
    "SynthesisConfig",
    "parse_bytes",
]
