"""Images in the forms in which other tools take calibration data. A tool is imported when its form is asked for.

| tool | form |
|---|---|
| ONNX Runtime, AMD Quark | `calibration_reader` |
| NNCF | `nncf_dataset` |
| PyTorch, ESP-PPQ | `data_loader` |
| TensorFlow Lite | `representative_dataset` |
| LiteRT Quantizer | `feeds`, channels last |
| NVIDIA ModelOpt | `array`, saved as `.npy` |
| Hailo, onnx2tf | `array`, channels last, saved as `.npy` |
| RKNN | pictures and `list.txt`, from `SyntheticSet.save` |

Several inputs are handed over one by one, in the order of `forward`'s arguments; `array` holds only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dffg.config import ArrayConfig
from dffg.errors import InputError
from dffg.images import SyntheticSet
from dffg.spec import Array, ImageSpec, JointSpec, joined_name

if TYPE_CHECKING:
    import nncf
    from onnxruntime.quantization import CalibrationDataReader
    from torch.utils.data import DataLoader

# What dffg, and by habit many others, call the only input of an ONNX file.
INPUT_NAME = "input"


def array(images: SyntheticSet, config: ArrayConfig | None = None) -> NDArray[Any]:
    """All images as one array, (images, C, H, W), or (images, H, W, C) where channels come last.

    Values are network inputs, float32, or uint8 pixels from 0 to 255, for tools that normalize by themselves. Raises
    `InputError` where there are no such pixels or channels, and for several inputs.
    """
    config = config or ArrayConfig()
    check_array(images.spec, config)
    chosen: NDArray[Any] = _pixels(images) if config.values == "pixels" else images.inputs
    return _laid_out(chosen, config.layout)


def check_array(spec: ImageSpec, config: ArrayConfig) -> None:
    """Refuse, before any work, what inputs of this kind cannot be handed over as."""
    if isinstance(spec, JointSpec):
        raise InputError(
            f"the network has {len(spec.inputs)} inputs, which do not go into one array; save them as .npz, or hand "
            "them over by name with dffg.handover.feeds."
        )
    if config.layout == "nhwc" and len(spec.shape) != 3:
        raise InputError(f"inputs of shape {spec.shape} are not CxHxW, so that they have no layout nhwc; choose nchw.")
    if config.values == "pixels" and not spec.is_pixels:
        raise InputError(
            f"inputs of shape {spec.shape} with bounds {spec.bounds} are not pixels; choose values inputs."
        )


def feeds(
    images: SyntheticSet, input_name: str | Sequence[str] | None = None, *, batch_size: int = 1, layout: str = "nchw"
) -> list[dict[str, Array]]:
    """What the input of that name is fed with, batch by batch; of several, every one by its name.

    `input_name` has the names of several inputs in the order of `forward`'s arguments. Left out, they are `input0`,
    `input1` and so on, as in saved files, and a single one is `input`. Where channels come last, inputs among several
    that have none, such as vectors, stay as they are. Raises `InputError` unless every input has a name of its own.
    """
    inputs = _arrays(images, layout)
    names = _names(input_name, len(inputs))
    starts = range(0, len(images), batch_size)
    return [{name: values[start : start + batch_size] for name, values in zip(names, inputs)} for start in starts]


def calibration_reader(
    images: SyntheticSet, input_name: str | Sequence[str] | None = None, *, batch_size: int = 1
) -> CalibrationDataReader:
    """For `onnxruntime.quantization.quantize_static` and what follows its interface. Names are those of `feeds`."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._batches = iter(feeds(images, input_name, batch_size=batch_size))

        def get_next(self) -> dict[str, Array] | None:
            return next(self._batches, None)

        def __len__(self) -> int:
            return -(-len(images) // batch_size)

    return Reader()


def nncf_dataset(images: SyntheticSet, input_name: str | Sequence[str] | None = None) -> nncf.Dataset:
    """For `nncf.quantize`, one image at a time. An ONNX model needs the names of its inputs, OpenVINO's does not."""
    import nncf

    batches = feeds(images, input_name)
    return nncf.Dataset(batches if input_name else [_without_names(batch) for batch in batches])


def data_loader(images: SyntheticSet, *, batch_size: int = 16) -> DataLoader[Any]:
    """Batches of network inputs as torch tensors, in order; of several inputs, a list of their tensors."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    inputs = [torch.from_numpy(values) for values in _arrays(images, "nchw")]
    data = TensorDataset(*inputs) if len(inputs) > 1 else inputs[0]
    return DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]


def representative_dataset(images: SyntheticSet, *, layout: str = "nhwc") -> Callable[[], Iterator[list[Array]]]:
    """For `tf.lite.TFLiteConverter.representative_dataset`: called, it yields one image after the other.

    Each comes as a list of its inputs; `feeds` says what becomes of those without channels.
    """

    def generate() -> Iterator[list[Array]]:
        for batch in feeds(images, layout=layout):
            yield list(batch.values())

    return generate


def _arrays(images: SyntheticSet, layout: str) -> list[Array]:
    """All network inputs of each input."""
    config = ArrayConfig(layout=layout)
    if not isinstance(images.spec, JointSpec):
        return [array(images, config)]
    return [_laid_out(values, config.layout) for values in images.spec.split(images.inputs)]


def _laid_out(values: NDArray[Any], layout: str) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(values, 1, -1) if layout == "nhwc" and values.ndim == 4 else values)


def _names(given: str | Sequence[str] | None, count: int) -> list[str]:
    if given is None:
        return [INPUT_NAME] if count == 1 else [joined_name(index) for index in range(count)]
    names = [given] if isinstance(given, str) else list(given)
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"input_name is {given!r}, and the network has {count} inputs; give each a name of its own, in the order "
            "of forward's arguments."
        )
    return names


def _without_names(batch: dict[str, Array]) -> Array | list[Array]:
    values = list(batch.values())
    return values if len(values) > 1 else values[0]


def _pixels(images: SyntheticSet) -> NDArray[np.uint8]:
    pixels = images.pixels()
    if pixels is None:
        raise InputError(
            f"the generator {images.config.generator} has left what 8-bit pixels can hold; choose values inputs."
        )
    return pixels
