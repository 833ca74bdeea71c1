"""Labelled or unlabelled real data: folders of pictures and .npz files, as batches of network inputs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dffg.errors import DataError, InputError
from dffg.images import evenly, read_npz
from dffg.spec import Array, ImageSpec, JointSpec, Pixels, joined_name

Labels = NDArray[np.int64]
_LONGEST = 100
# Examples that are decoded and run at once.
_BATCH = 32
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# 65535 becomes 255.
_16_TO_8_BITS = 257
# Truth values, whole numbers with and without sign, and floats, as numpy calls them.
_NUMBERS = "biuf"


@dataclass(frozen=True, kw_only=True)
class Data:
    """A readable set of real examples. `labels` is None where there are none. Pictures are decoded batch by batch.

    folders: one for every class in their order, where the labels are told by them.
    """

    source: Sequence[Path] | Pixels | Array
    labels: Labels | None
    spec: ImageSpec
    folders: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def are_pixels(self) -> bool:
        """Whether mean and standard deviation are still to be applied; features are taken as they are."""
        return not isinstance(self.source, np.ndarray) or self.source.dtype == np.uint8

    def batch_count(self) -> int:
        """How many batches there are."""
        return -(-len(self) // _BATCH)

    def batches(self, size: int = _BATCH) -> Iterator[Array]:
        """Network inputs in order, (size, *spec.shape); the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self._inputs(start, start + size)

    def first(self, count: int) -> Data:
        """The first `count` examples."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, source=self.source[:count], labels=labels)

    def evenly(self, count: int) -> Data:
        """At most `count` examples, from all parts of the set: pictures in folders are sorted by class."""
        chosen = evenly(len(self), count)
        source = self.source[chosen] if isinstance(self.source, np.ndarray) else [self.source[i] for i in chosen]
        return replace(self, source=source, labels=None if self.labels is None else self.labels[chosen])

    def _inputs(self, start: int, stop: int) -> Array:
        part = self.source[start:stop]
        if not isinstance(part, np.ndarray):
            part = np.stack([read_picture(path, self.spec) for path in part])
        return self.spec.from_uint8(part) if part.dtype == np.uint8 else part  # type: ignore[arg-type, return-value]


def load_data(path: str | Path, spec: ImageSpec, *, labelled: bool) -> Data:
    """Open a folder or file of real examples.

    A folder holds `labels.csv` (columns `file` and `label`), or one sub-folder for every class of the network (classes
    are numbered in alphabetical order), or, where no labels are needed, pictures at any depth; what has a name that
    begins with a dot is passed over. An `.npz` holds `images` (uint8 pixels, N,C,H,W) of networks that take pictures,
    or `features` (float network inputs, as they are), and `labels`; for a network of several inputs, `input0`, `input1`
    and so on, each of them pixels (uint8, where that input is a picture) or network inputs.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no data at {path}.")
    data = _load_folder(path, spec, labelled) if path.is_dir() else _load_npz(path, spec)
    if not len(data):
        what = f"; a folder holds pictures that end with {', '.join(sorted(_SUFFIXES))}" if path.is_dir() else ""
        raise InputError(f"{path} holds no examples{what}.")
    if labelled and data.labels is None:
        raise InputError(f"{path} has no labels; add labels.csv with columns file,label, or `labels` in the .npz.")
    return data


def check_folders(classes: int, data: Data) -> None:
    """Raises InputError where classes are told by folders, and these are not those of a network with so many classes.

    With some of them missing, those that are there would be numbered as if they were the first.
    """
    if data.folders and classes not in (1, len(data.folders)):
        first, last = data.folders[0], data.folders[-1]
        raise InputError(
            f"{first.parent} has {len(data.folders)} folders of classes ({first.name} to {last.name}), and the network "
            f"has {classes} classes; they are numbered in alphabetical order, so give a folder for every class, empty "
            "where there are no pictures, or labels.csv with columns file,label."
        )


def read_picture(path: Path, spec: ImageSpec) -> Pixels:
    """Decode a picture and fit it to the input: (C, H, W) uint8."""
    channels, height, width = spec.shape
    try:
        with Image.open(path) as opened:
            if max(opened.size) > _LONGEST * min(opened.size):
                raise ValueError(f"it is {opened.width}x{opened.height}, too narrow to be scaled")
            picture = _of_8_bits(opened).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except Exception as error:  # whatever a damaged file makes Pillow raise, and pictures that it finds too large
        raise DataError(f"{path} cannot be read as a picture with {channels} channels: {error}") from error
    pixels = np.asarray(fit_picture(picture, height, width, spec.crop_fraction))
    return np.moveaxis(pixels.reshape(height, width, channels), -1, 0)


def _of_8_bits(picture: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255 what has more bits. Nobody says what integers of 32 bits and floats mean."""
    if picture.mode in ("I", "F"):
        kind = "floats" if picture.mode == "F" else "integers of 32 bits"
        raise ValueError(f"it holds {kind}; give pictures of 8 or 16 bits, or an .npz with `features`")
    if not picture.mode.startswith("I;16"):
        return picture
    return Image.fromarray(np.rint(np.asarray(picture) / _16_TO_8_BITS).astype(np.uint8))


def fit_picture(picture: Image.Image, height: int, width: int, crop_fraction: float) -> Image.Image:
    """Scale the shorter side to input / crop_fraction (timm's rule) and cut out the middle.

    Pictures whose shorter side lies between the input and that size, 227 for an input of 224 say, were prepared by
    someone already and are only cropped.
    """
    shorter = min(picture.size)
    target = int(max(height, width) / crop_fraction)
    if not max(height, width) <= shorter <= target:
        scale = target / shorter
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _load_folder(folder: Path, spec: ImageSpec, labelled: bool) -> Data:
    if not spec.is_pixels:
        names = "`input0`, `input1` and so on" if isinstance(spec, JointSpec) else "`features`"
        raise InputError(
            f"{folder} holds pictures, but the network takes features; give an .npz with {names}. "
            "Pixels have bounds 0:1, which --mean and --std normalize."
        )
    if (folder / "labels.csv").exists():
        return _load_csv(folder, spec)
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.relative_to(folder))
    )
    if not classes or not labelled:
        return Data(source=_pictures(folder), labels=None, spec=spec)
    files = [(path, index) for index, entry in enumerate(classes) for path in _pictures(entry)]
    labels = _labels([label for _, label in files])
    return Data(source=[path for path, _ in files], labels=labels, spec=spec, folders=tuple(classes))


def _load_csv(folder: Path, spec: ImageSpec) -> Data:
    table = folder / "labels.csv"
    try:
        # utf-8-sig: spreadsheets begin a file with a mark.
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = [(reader.line_num, row) for row in reader], list(reader.fieldnames or ())
    except (csv.Error, ValueError) as error:
        raise InputError(f"{table} cannot be read: {error}.") from error
    if not {"file", "label"} <= set(columns):
        found = ", ".join(columns) or "none"
        raise InputError(f"{table} has the columns {found}; it needs file,label, separated by commas.")
    labels = _labels([_label(f"{table}, line {line}", row["label"]) for line, row in rows])
    files = [folder / (row["file"] or "") for _, row in rows]
    missing = [index for index, path in enumerate(files) if not path.is_file()]
    if missing:
        line, row = rows[missing[0]]
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise InputError(f"{table}, line {line}: there is no file {row['file'] or '(none is named)'}{more}.")
    return Data(source=files, labels=labels, spec=spec)


def _label(place: str, text: str | None) -> int:
    if text is None or re.fullmatch(r"\s*\d{1,9}\s*", text) is None:
        raise InputError(f"{place}: the label is {text!r}; give a whole number, counted from 0.")
    return int(text)


def _load_npz(path: Path, spec: ImageSpec) -> Data:
    arrays = read_npz(path)
    source = _join(arrays, spec, path) if isinstance(spec, JointSpec) else _only(arrays, spec, path)
    labels = arrays.get("labels")
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"`labels` in {path} are {labels.dtype} of shape {labels.shape}; give one whole number each.")
    if labels is not None and len(labels) != len(source):
        raise InputError(f"{path} holds {len(source)} examples but {len(labels)} labels.")
    return Data(source=source, labels=None if labels is None else _labels(labels), spec=spec)


def _only(arrays: dict[str, NDArray[Any]], spec: ImageSpec, path: Path) -> Pixels | Array:
    """The only input, as uint8 pixels or as it is fed."""
    name = "images" if "images" in arrays else "features"
    source = arrays.get(name)
    if source is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; it needs `images` (uint8) or `features`.")
    if source.shape[1:] != spec.shape:
        raise InputError(f"{path} holds examples of shape {source.shape[1:]}, the network takes {spec.shape}.")
    if name == "features":
        return _numbers(source, name, path)
    if not spec.is_pixels:
        raise InputError(
            f"{path} holds `images`, but inputs of shape {spec.shape} with bounds {spec.bounds} are not 8-bit "
            "pictures; give `features`, the float network inputs, instead."
        )
    if source.dtype != np.uint8:
        raise InputError(f"`images` in {path} is {source.dtype}; store uint8 pixels, or network inputs as `features`.")
    return source


def _numbers(values: NDArray[Any], name: str, path: Path) -> Array:
    if values.dtype.kind not in _NUMBERS:
        raise InputError(f"`{name}` in {path} is {values.dtype}; store numbers.")
    damaged = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(damaged):
        raise InputError(
            f"`{name}` in {path} holds NaN or infinite values in {len(damaged)} of {len(values)} examples, first in "
            f"example {damaged[0]}; repair or remove them."
        )
    return values.astype(np.float32)


def _join(arrays: dict[str, NDArray[Any]], spec: JointSpec, path: Path) -> Array:
    """Every input by its place: of pictures, uint8 are pixels; everything else is taken as it is fed."""
    parts = []
    for index, part in enumerate(spec.inputs):
        values = arrays.get(joined_name(index))
        if values is None or values.shape[1:] != part.shape:
            found = "nothing" if values is None else f"shape {values.shape}"
            raise InputError(
                f"{path} has {found} as {joined_name(index)}; the network takes {len(spec.inputs)} inputs, this one of "
                f"shape {part.shape}, and as many examples of each."
            )
        is_pixels = part.is_pixels and values.dtype == np.uint8
        parts.append(part.from_uint8(values) if is_pixels else _numbers(values, joined_name(index), path))
    if len({len(values) for values in parts}) > 1:
        raise InputError(f"the inputs in {path} are not equally many: {[len(values) for values in parts]}.")
    return spec.join(parts)


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return [path for path in found if not _is_hidden(path.relative_to(folder))]


def _is_hidden(path: Path) -> bool:
    """Whether a part of it begins with a dot, like what programs leave beside data: .ipynb_checkpoints, ._a.png."""
    return any(part.startswith(".") for part in path.parts)


def _labels(values: Any) -> Labels:
    return np.asarray(values, dtype=np.int64)
