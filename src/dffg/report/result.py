"""The result of a run: one dataclass, one JSON file."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import InputError
from dffg.evaluation.metrics import Accuracy
from dffg.export.runtime import Kernels
from dffg.export.verification import SimulationMatch
from dffg.machine.environment import Environment
from dffg.quant.mixed import MixedPrecision
from dffg.spec import ImageSpec

SCHEMA_VERSION = 1
IMAGES_FILE, PARAMETERS_FILE = "images.npz", "parameters.npz"
REPORT_FILE, PAGE_FILE = "report.json", "report.html"
AGREEMENT_MEANING = "agreement with the float model on held-out synthetic images, not task accuracy"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Calibration images: where they came from and what they cost. passes: forward and backward passes of one chain."""

    source: str
    count: int
    chains: int
    steps: int
    passes: int


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall-clock time of every stage; held_out_images is making those that the result is verified on."""

    capture: float
    synthesis: float
    calibration: float
    learning: float
    held_out_images: float
    export: float
    verify: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median milliseconds per run, both files measured in turns in the runtime they are for."""

    quantized: float
    float: builtins.float
    batch: int
    threads: int

    @property
    def speedup(self) -> builtins.float:
        """How many times faster the quantized file is."""
        return self.float / self.quantized


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the written file predicts beside the float network, on held-out synthetic images.

    broken: why the answers are nonsense, where they are. outputs: the SQNR of each of several outputs, by name; top1 is
    None then, and sqnr_db that of the worst.
    """

    top1: float | None
    sqnr_db: float
    count: int
    broken: str | None = None
    outputs: dict[str, float] | None = None
    meaning: str = AGREEMENT_MEANING


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of a convolution or linear layer; sqnr_db of its result within the quantized network.

    name: that of the module, with a number where it is called again, such as conv (2): no two are equal.
    input_range: lowest and highest input that its integers represent; None where a report does not say.
    """

    name: str
    weight_bits: int
    activation_bits: int
    sqnr_db: float
    input_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything a run found. `problems` says in words what a user must know before using the file.

    latency_ms: None where the runtime is not here. equalized: what was evened out, where the configuration leaves the
    choice. float_reasons: what keeps each of `float_operations` from integers. mixed: how the widths were chosen, where
    they were. noise_baseline: accuracy with ranges from noise, before anything is learned, where accuracy was measured.
    command: what was typed or called to make it.
    """

    model: str
    scheme: str
    target: str
    seed: int
    version: str
    environment: Environment
    input: ImageSpec
    images: Images
    synthesis: SynthesisConfig | None
    quantization: QuantizationConfig
    equalized: str
    learning: LearningConfig
    seconds: Seconds
    peak_memory_bytes: int | None
    size_bytes: dict[str, int]
    kernels: Kernels
    latency_ms: Latency | None
    agreement: Agreement
    simulation_match: SimulationMatch
    accuracy: Accuracy | None
    layers: tuple[Layer, ...]
    float_operations: tuple[str, ...]
    float_reasons: dict[str, str]
    zero_variance_channels: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    files: dict[str, str]
    path: str
    mixed: MixedPrecision | None = None
    noise_baseline: Accuracy | None = None
    command: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def verified(self) -> bool:
        """Whether the runtime computes what was decided, and that is no nonsense."""
        return self.simulation_match.holds and self.agreement.broken is None

    def to_dict(self) -> dict[str, Any]:
        """As plain data. Infinite and undefined numbers become null: JSON has none."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_json(self) -> str:
        """As it is written to `report.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: Path) -> None:
        """Write `report.json`."""
        path.write_text(self.to_json() + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What of an earlier `report.json` is needed to go on from it."""

    images: Images
    synthesis: SynthesisConfig | None
    quantization: QuantizationConfig
    equalized: str
    seed: int
    input: ImageSpec


def read_report(path: Path) -> dict[str, Any]:
    """A `report.json` as plain data. Raises InputError where it is none."""
    if not path.is_file():
        raise InputError(f"{path} is missing; give the directory that quantize has written.")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a report: {error}.") from error
    if not isinstance(plain, dict) or plain.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path} is not a report of this version of dffg; quantize again.")
    return plain


def files_of(directory: Path) -> frozenset[str]:
    """Names of the files of the result in a directory; none where there is no report that can be read."""
    try:
        names = read_report(directory / REPORT_FILE).get("files")
    except InputError:
        return frozenset()
    return frozenset(name for name in names if Path(name).name == name) if isinstance(names, dict) else frozenset()


def load_report(path: Path) -> Report:
    """Read a `report.json`. Raises InputError where it is none, or older than this version of its schema."""
    plain = read_report(path)
    try:
        return Report(
            images=Images(**plain["images"]),
            synthesis=None if plain["synthesis"] is None else SynthesisConfig(**plain["synthesis"]),
            quantization=QuantizationConfig(**plain["quantization"]),
            equalized=plain["equalized"],
            seed=int(plain["seed"]),
            input=ImageSpec.from_dict(plain["input"]),
        )
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise InputError(f"{path} is not a report of this version of dffg: {error}.") from error


def find_problems(
    kernels: Kernels, latency: Latency | None, match: SimulationMatch, agreement: Agreement
) -> tuple[str, ...]:
    """What a user must know before using the file, in plain words."""
    problems = []
    if agreement.broken is not None:
        problems.append(
            f"the quantized network is broken: {agreement.broken}; see that --input, --mean, --std and --bounds are "
            "those of training, then use more bits or --recipe best"
        )
    if not match.holds:
        problems.append(
            f"the runtime disagrees with the simulation: in {match.worst_tensor} only {match.equal_share:.2%} of the "
            f"integers are equal, somewhere they are {match.max_abs_difference_in_steps} steps apart, and the output "
            f"is off by {match.output_error:.1e} of its largest value and, unwatched, has "
            f"{match.unwatched_noise:.2f} times the quantization noise"
        )
    if latency is not None and latency.quantized >= latency.float:
        problems.append(
            f"the quantized file is not faster than the float file here ({latency.quantized:.2f} ms against "
            f"{latency.float:.2f} ms); networks this small, or CPUs without int8 instructions, may gain nothing"
        )
    if kernels.float:
        problems.append(f"{kernels.float} convolutions or matrix products run in float")
    return tuple(problems)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
