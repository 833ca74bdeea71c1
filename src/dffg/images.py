"""What an input looks like (`ImageSpec`) and a finished collection of made images (`SyntheticSet`). Free of torch."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dffg.config import SynthesisConfig
from dffg.errors import InputError, OutputError

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LIST_FILE = "list.txt"
_FILE_SCHEMA = 1


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
        if not self.shape or min(self.shape) < 1 or math.prod(self.shape) > 2**28:
            raise InputError(f"input shape {self.shape} is not usable; give CxHxW with positive sizes, like 3x224x224.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) or not all(map(math.isfinite, values)):
                raise InputError(f"{name} {values} does not fit {channels} channels; give 1 or {channels} numbers.")
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
    def is_pixels(self) -> bool:
        """Joined inputs are stored and walked as numbers, also where some of them are pictures."""
        return False

    def split(self, values: Array) -> list[Array]:
        """(batch, length) -> (batch, *shape) of every input."""
        ends = np.cumsum([math.prod(part.shape) for part in self.inputs])[:-1]
        parts = np.split(values, ends, axis=-1)
        return [values.reshape(-1, *part.shape) for part, values in zip(self.inputs, parts)]

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


def joined_name(index: int) -> str:
    """Name, in files of arrays, of one of several inputs."""
    return f"input{index}"


def parse_shape(text: str) -> tuple[int, ...]:
    """Read `3x224x224`."""
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputError(f"cannot read input shape {text!r}; write it like 3x224x224.") from None


def parse_numbers(text: str, separator: str = ",") -> tuple[float, ...]:
    """Read `0.485,0.456,0.406`."""
    try:
        return tuple(float(part) for part in text.split(separator))
    except ValueError:
        raise InputError(f"cannot read numbers {text!r}; write them like 0.5{separator}0.5.") from None


def parse_bounds(text: str) -> tuple[float, float]:
    """Read `-130:30`."""
    numbers = parse_numbers(text, ":")
    if len(numbers) != 2:
        raise InputError(f"cannot read bounds {text!r}; write them like 0:1.")
    return numbers[0], numbers[1]


@dataclass(frozen=True, kw_only=True)
class SnapshotRecord:
    """Where one kept batch came from: which chain, after how many updates, and its loss if it has one."""

    chain: int
    step: int
    loss: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """Made images with everything needed to make them again.

    `inputs` are network inputs, float32, (images, *spec.shape). Pictures lie on the 8-bit pixel grid, so a saved
    and reloaded set is the same set. `losses` has one entry per chain: the losses of all its passes up to the last kept
    batch, None where no pass was made. It is empty where a file does not say.
    """

    inputs: Array
    spec: ImageSpec
    config: SynthesisConfig
    snapshots: tuple[SnapshotRecord, ...]
    losses: tuple[tuple[float | None, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> SyntheticSet:
        """The first images, with the records of the batches and chains they come from."""
        kept: list[SnapshotRecord] = []
        left = min(count, len(self))
        for snapshot in self.snapshots:
            if left > 0:
                kept.append(replace(snapshot, count=min(snapshot.count, left)))
                left -= snapshot.count
        chains = len({snapshot.chain for snapshot in kept})
        return replace(self, inputs=self.inputs[:count], snapshots=tuple(kept), losses=self.losses[:chains])

    def save(self, path: str | Path) -> None:
        """Write `.npz`, `.safetensors`, or, for any other name, a folder of PNG pictures.

        Files hold `images` (uint8 pixels) for pictures and `features` (float32 network input) otherwise; of several
        inputs, `input0`, `input1` and so on. A folder has the names of its pictures in `list.txt`, one a line.
        """
        path = Path(path)
        if path.suffix == ".npz":
            np.savez_compressed(path, **self._arrays(), metadata=np.asarray(self._metadata()))  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(self._arrays(), path, metadata={"dffg": self._metadata()})
        else:
            self._save_pictures(path)

    @classmethod
    def load(cls, path: str | Path) -> SyntheticSet:
        """Read a file written by `save`. Pickled content is refused."""
        path = Path(path)
        try:
            return cls._read(path)
        except Exception as error:  # whatever a damaged file makes the readers raise
            raise InputError(f"{path} is not a set of images saved by dffg: {error}") from error

    @classmethod
    def _read(cls, path: Path) -> SyntheticSet:
        arrays, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
        stored = json.loads(metadata)
        spec = ImageSpec.from_dict(stored["spec"])
        return cls(
            inputs=_inputs_in(arrays, spec),
            spec=spec,
            config=SynthesisConfig(**stored["config"]),
            snapshots=tuple(SnapshotRecord(**snapshot) for snapshot in stored["snapshots"]),
            losses=tuple(map(tuple, stored.get("losses", ()))),
        )

    def pixels(self) -> Pixels | None:
        """The images as 8-bit pixels, (images, *spec.shape), where that is what they are."""
        if not self.spec.is_pixels:
            return None
        pixels = self.spec.to_uint8(self.inputs)
        # Noise and some generators leave the legal pixels; rounding would make other images of them.
        return pixels if np.allclose(self.spec.from_uint8(pixels), self.inputs, atol=1e-4) else None

    def _arrays(self) -> dict[str, NDArray[Any]]:
        if isinstance(self.spec, JointSpec):
            parts = map(np.ascontiguousarray, self.spec.split(self.inputs))
            return {joined_name(index): part for index, part in enumerate(parts)}
        pixels = self.pixels()
        return {"features": self.inputs} if pixels is None else {"images": pixels}

    def _metadata(self) -> str:
        return json.dumps(
            {
                "schema_version": _FILE_SCHEMA,
                "spec": asdict(self.spec),
                "config": asdict(self.config),
                "snapshots": [asdict(snapshot) for snapshot in self.snapshots],
                "losses": self.losses,
            }
        )

    def _save_pictures(self, folder: Path) -> None:
        if not self.spec.is_pixels or self.spec.shape[0] not in (1, 3, 4):
            raise OutputError(
                f"inputs of shape {self.spec.shape} with bounds {self.spec.bounds} are not pictures; "
                "give --out a name that ends in .npz or .safetensors."
            )
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{index:05d}.png" for index in range(len(self))]
        for name, pixels in zip(names, self.spec.to_uint8(self.inputs)):
            picture = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
            Image.fromarray(picture).save(folder / name)
        (folder / LIST_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _inputs_in(arrays: dict[str, NDArray[Any]], spec: ImageSpec) -> Array:
    if isinstance(spec, JointSpec):
        return spec.join([arrays[joined_name(index)] for index in range(len(spec.inputs))])
    return spec.from_uint8(arrays["images"]) if "images" in arrays else arrays["features"]


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` file. Refused are pickled content, and arrays that claim more than the file holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_claim(archive, member)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise InputError(f"{path} is not a readable .npz file: {error}") from error


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError where the header of an array promises more than there is: numpy would make room for it first."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, _, dtype = read_header(stream)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims to be of shape {shape} and has only {member.file_size} bytes")


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    arrays = read_npz(path)
    return arrays, str(arrays.pop("metadata"))


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as archive:
        names = list(archive.keys())
        return {name: archive.get_tensor(name) for name in names}, archive.metadata()["dffg"]


def concatenate(batches: Sequence[Array]) -> Array:
    """Join batches, or say that there are none."""
    if not batches:
        raise InputError("no images were made; raise --max-seconds.")
    return np.concatenate(list(batches))
