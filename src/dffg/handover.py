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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dffg.config import ArrayConfig
from dffg.errors import InputError
from dffg.images import SyntheticSet
from dffg.spec import Array, ImageSpec

if TYPE_CHECKING:
    import nncf
    from onnxruntime.quantization import CalibrationDataReader
    from torch import Tensor
    from torch.utils.data import DataLoader

# What dffg, and by habit many others, call the only input of an ONNX file.
INPUT_NAME = "input"


def array(images: SyntheticSet, config: ArrayConfig | None = None) -> NDArray[Any]:
    """All images as one array, (images, C, H, W), or (images, H, W, C) where channels come last.

    Values are network inputs, float32, or uint8 pixels from 0 to 255, for tools that normalize by themselves. Raises
    `InputError` where there are no such pixels or channels.
    """
    config = config or ArrayConfig()
    check_array(images.spec, config)
    chosen: NDArray[Any] = _pixels(images) if config.values == "pixels" else images.inputs
    return np.ascontiguousarray(np.moveaxis(chosen, 1, -1)) if config.layout == "nhwc" else chosen


def check_array(spec: ImageSpec, config: ArrayConfig) -> None:
    """Refuse, before any work, what inputs of this kind cannot be handed over as."""
    if config.layout == "nhwc" and len(spec.shape) != 3:
        raise InputError(f"inputs of shape {spec.shape} are not CxHxW, so that they have no layout nhwc; choose nchw.")
    if config.values == "pixels" and not spec.is_pixels:
        raise InputError(
            f"inputs of shape {spec.shape} with bounds {spec.bounds} are not pixels; choose values inputs."
        )


def feeds(
    images: SyntheticSet, input_name: str = INPUT_NAME, *, batch_size: int = 1, layout: str = "nchw"
) -> list[dict[str, Array]]:
    """What the input of that name is fed with, batch by batch."""
    inputs = array(images, ArrayConfig(layout=layout))
    return [{input_name: inputs[start : start + batch_size]} for start in range(0, len(inputs), batch_size)]


def calibration_reader(
    images: SyntheticSet, input_name: str = INPUT_NAME, *, batch_size: int = 1
) -> CalibrationDataReader:
    """For `onnxruntime.quantization.quantize_static` and what follows its interface."""
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


def nncf_dataset(images: SyntheticSet, input_name: str | None = None) -> nncf.Dataset:
    """For `nncf.quantize`, one image at a time. An ONNX model needs the name of its input, OpenVINO's does not."""
    import nncf

    return nncf.Dataset(
        [batch if input_name else batch[INPUT_NAME] for batch in feeds(images, input_name or INPUT_NAME)]
    )


def data_loader(images: SyntheticSet, *, batch_size: int = 16) -> DataLoader[Tensor]:
    """Batches of network inputs as torch tensors, in order."""
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(torch.from_numpy(images.inputs), batch_size=batch_size)  # type: ignore[arg-type]


def representative_dataset(images: SyntheticSet, *, layout: str = "nhwc") -> Callable[[], Iterator[list[Array]]]:
    """For `tf.lite.TFLiteConverter.representative_dataset`: called, it yields one image after the other."""

    def generate() -> Iterator[list[Array]]:
        for batch in feeds(images, layout=layout):
            yield [batch[INPUT_NAME]]

    return generate


def _pixels(images: SyntheticSet) -> NDArray[np.uint8]:
    pixels = images.pixels()
    if pixels is None:
        raise InputError(
            f"the generator {images.config.generator} has left what 8-bit pixels can hold; choose values inputs."
        )
    return pixels
