"""What an input of a network looks like, and its pixels and numbers. Free of torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dffg.errors import InputError

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# Under this name files say what their input looks like.
METADATA_KEY = "dffg.input"
# What the defaults of an `ImageSpec` say.
DEFAULT_INPUT = "pixels in [0, 1] without normalization"
# Of one example.
_MOST_NUMBERS = 2**28


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The input a network expects: `input = (pixel - mean) / std` with `bounds[0] <= pixel <= bounds[1]`.

    `shape` is one example without the batch, channels first. `mean` and `std` have one entry, or one per channel.
    With bounds (0, 1) pixels are 8-bit images scaled by 1/255; any other bounds mean features that are fed as they
    are (audio, sensors). `crop_fraction` is the share of the resized image that the central crop keeps, timm's
    `crop_pct`.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] = (0.0, 1.0)
    crop_fraction: float = 0.875
    source: str = "given by the caller"

    def __post_init__(self) -> None:
        channels = self.shape[0] if self.shape else 0
        if not self.shape or min(self.shape) < 1:
            raise InputError(f"input shape {self.shape} is not usable; give CxHxW with positive sizes, like 3x224x224.")
        if math.prod(self.shape) > _MOST_NUMBERS:
            raise InputError(
                f"an input of shape {self.written_shape} has {math.prod(self.shape)} numbers, and at most "
                f"{_MOST_NUMBERS} are taken; give a smaller one."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(map(math.isfinite, values)):
                raise InputError(f"{name} is {values}; give finite numbers.")
            if len(values) not in (1, channels):
                raise InputError(
                    f"{name} {values} does not fit {channels} channels, the first size of the input "
                    f"{self.written_shape}; give the shape as CxHxW, without the batch, and {name} as one number or "
                    "one for every channel."
                )
        if min(self.std) <= 0:
            raise InputError(f"std {self.std} must be positive.")
        if not (self.bounds[0] < self.bounds[1] and all(map(math.isfinite, self.bounds))):
            raise InputError(f"bounds {self.bounds} must be two finite numbers, the lower one first, like 0:1.")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ImageSpec:
        """Read back what `dataclasses.asdict` and JSON made of a spec."""
        if "inputs" in fields:
            return JointSpec.of([ImageSpec.from_dict(part) for part in fields["inputs"]])
        known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**known)

    def to_json(self) -> str:
        """What files store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImageSpec:
        """Read back what a file says. Raises InputError where that is damaged."""
        try:
            return cls.from_dict(json.loads(text))
        except Exception as error:  # whatever a damaged text makes the readers raise
            raise InputError(f"the file's description of its input ({METADATA_KEY}) is damaged: {error}") from error

    @property
    def parts(self) -> tuple[ImageSpec, ...]:
        """The description of every input."""
        return (self,)

    @property
    def written_shape(self) -> str:
        """Shapes of all inputs as they are typed."""
        return shape_text(part.shape for part in self.parts)

    @property
    def is_pixels(self) -> bool:
        """Whether inputs are 8-bit pictures, which can be stored as uint8 and looked at."""
        return self.bounds == (0.0, 1.0) and len(self.shape) == 3

    def normalize(self, pixels: Array) -> Array:
        """Pixels in `bounds` -> network input, float32."""
        return (pixels - self._column(self.mean)) / self._column(self.std)

    def denormalize(self, inputs: Array) -> Array:
        """Network input -> pixels in `bounds`, float32."""
        return inputs * self._column(self.std) + self._column(self.mean)

    def to_uint8(self, inputs: Array) -> Pixels:
        """Network input -> nearest 8-bit pixels."""
        levels: Pixels = np.clip(np.rint(self.denormalize(inputs) * np.float32(255)), 0, 255).astype(np.uint8)
        return levels

    def from_uint8(self, pixels: Pixels) -> Array:
        """8-bit pixels -> network input, float32."""
        return self.normalize(pixels.astype(np.float32) / np.float32(255))

    def input_bounds(self) -> tuple[Array, Array]:
        """Lowest and highest legal network input, shaped to broadcast against one example."""
        low, high = (np.full((1,) * len(self.shape), bound, dtype=np.float32) for bound in self.bounds)
        return self.normalize(low), self.normalize(high)

    def _column(self, values: tuple[float, ...]) -> Array:
        return np.asarray(values, dtype=np.float32).reshape(-1, *[1] * (len(self.shape) - 1))


@dataclass(frozen=True, kw_only=True)
class JointSpec(ImageSpec):
    """Several inputs as one, the numbers of every example laid end to end in the order of `forward`'s arguments.

    inputs: what each of them is. `shape` has one axis; `bounds` hold the bounds of all.
    """

    inputs: tuple[ImageSpec, ...]

    @classmethod
    def of(cls, inputs: Sequence[ImageSpec]) -> JointSpec:
        """The inputs that these describe, together."""
        low, high = min(part.bounds[0] for part in inputs), max(part.bounds[1] for part in inputs)
        sources = dict.fromkeys(part.source for part in inputs)
        length = sum(math.prod(part.shape) for part in inputs)
        return cls(shape=(length,), bounds=(low, high), source=" and ".join(sources), inputs=tuple(inputs))

    @property
    def parts(self) -> tuple[ImageSpec, ...]:
        """The description of every input."""
        return self.inputs

    @property
    def is_pixels(self) -> bool:
        """Joined inputs are stored and walked as numbers, also where some of them are pictures."""
        return False

    def split(self, values: Array) -> list[Array]:
        """(batch, length) -> (batch, *shape) of every input."""
        return cut(values, [part.shape for part in self.inputs])

    def join(self, parts: Sequence[NDArray[Any]]) -> Array:
        """(batch, *shape) of every input -> (batch, length)."""
        return np.concatenate([values.reshape(len(values), -1) for values in parts], axis=1).astype(np.float32)

    def normalize(self, pixels: Array) -> Array:
        """As in every input."""
        return self.join([part.normalize(values) for part, values in zip(self.inputs, self.split(pixels))])

    def denormalize(self, inputs: Array) -> Array:
        """As in every input."""
        return self.join([part.denormalize(values) for part, values in zip(self.inputs, self.split(inputs))])

    def input_bounds(self) -> tuple[Array, Array]:
        """Lowest and highest legal value of every number of an example."""
        ends = [[np.broadcast_to(end, part.shape)[None] for end in part.input_bounds()] for part in self.inputs]
        low, high = (self.join([pair[index] for pair in ends])[0] for index in range(2))
        return low, high


def cut(values: Array, shapes: Sequence[Sequence[int]]) -> list[Array]:
    """(batch, length) -> (batch, *shape) of every part."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [part.reshape(-1, *shape) for part, shape in zip(np.split(values, ends, axis=-1), shapes)]


def joined_name(index: int) -> str:
    """Name, in files of arrays, of one of several inputs."""
    return f"input{index}"


def shape_text(shapes: Iterable[Sequence[int]]) -> str:
    """Shapes of all inputs as they are typed: 3x224x224, or 3x224x224/8."""
    return "/".join("x".join(map(str, shape)) for shape in shapes)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read `3x224x224`."""
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputError(f"cannot read input shape {text!r}; write it like 3x224x224.") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read `0.485,0.456,0.406`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"cannot read numbers {text!r}; write them like 0.5 or 0.485,0.456,0.406.") from None


def parse_bounds(text: str) -> tuple[float, float]:
    """Read `-130:30`."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise InputError(f"cannot read bounds {text!r}; write them like 0:1 or -130:30.") from None
    return low, high
