"""A finished collection of made images, in memory and as a file. Free of torch."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dffg.config import SynthesisConfig
from dffg.errors import InputError, OutputError
from dffg.spec import Array, ImageSpec, JointSpec, Pixels, joined_name

LIST_FILE = "list.txt"
_PICTURE = re.compile(r"[0-9]{5,8}\.png")
_FILE_SCHEMA = 1


def check_pictures(spec: ImageSpec) -> None:
    """Raises OutputError where inputs cannot be saved as pictures."""
    if not spec.is_pixels or spec.shape[0] not in (1, 3, 4):
        raise OutputError(
            f"inputs of shape {spec.shape} with bounds {spec.bounds} are not pictures; give --out a name that ends in "
            ".npz, .safetensors or .npy."
        )


def evenly(total: int, count: int) -> list[int]:
    """Places of at most `count` of so many, from all parts of them."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


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
        inputs, `input0`, `input1` and so on. A folder has the names of its pictures in `list.txt`, one a line; what
        8-bit pixels cannot hold is refused there with an OutputError.
        """
        path = Path(path)
        if path.suffix == ".npz":
            arrays = arrays_of(self.inputs, self.spec) | {"metadata": np.asarray(self._metadata())}
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays_of(self.inputs, self.spec), path, metadata={"dffg": self._metadata()})
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
        return _as_pixels(self.inputs, self.spec)

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
        check_pictures(self.spec)
        pixels = self.pixels()
        if pixels is None:
            raise OutputError(
                f"the generator {self.config.generator} has left what 8-bit pixels can hold, so that pictures of these "
                "images would be others; save them as .npz or .safetensors."
            )
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{index:05d}.png" for index in range(len(self))]
        for name, image in zip(names, pixels):
            picture = image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1))
            Image.fromarray(picture).save(folder / name)
        (folder / LIST_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def pictures_in(folder: Path) -> frozenset[str]:
    """Names of the files that `save` has written into a folder, as its list has them; none where that cannot be read.

    The list may be anybody's: what is not called as `save` calls pictures, or is no file, is not among them.
    """
    table = folder / LIST_FILE
    try:
        names = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    except (OSError, ValueError):
        return frozenset()
    return frozenset(name for name in names if _PICTURE.fullmatch(name) and (folder / name).is_file())


def arrays_of(inputs: Array, spec: ImageSpec) -> dict[str, NDArray[Any]]:
    """Network inputs as a file holds them, so that the same inputs are read again.

    `images` where they are 8-bit pixels, else `features`; of several inputs, `input0`, `input1` and so on.
    """
    if isinstance(spec, JointSpec):
        return {joined_name(index): np.ascontiguousarray(part) for index, part in enumerate(spec.split(inputs))}
    pixels = _as_pixels(inputs, spec)
    return {"features": inputs} if pixels is None else {"images": pixels}


def _as_pixels(inputs: Array, spec: ImageSpec) -> Pixels | None:
    if not spec.is_pixels:
        return None
    pixels = spec.to_uint8(inputs)
    # Noise and some generators leave the legal pixels; rounding would make other images of them.
    return pixels if np.allclose(spec.from_uint8(pixels), inputs, atol=1e-4) else None


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
