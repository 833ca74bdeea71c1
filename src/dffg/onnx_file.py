"""Read ONNX files, and what dffg has written into them about their input."""

from __future__ import annotations

from pathlib import Path

import onnx

from dffg.errors import InputError
from dffg.spec import METADATA_KEY, ImageSpec


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, or say what is wrong with it. Weights beside it must lie in its directory or below."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error
    return model


def read_spec(path: Path) -> ImageSpec | None:
    """The input description that dffg wrote into a file; None in files of others."""
    return spec_of(load(path))


def spec_of(model: onnx.ModelProto) -> ImageSpec | None:
    """As `read_spec`, of a file that is read."""
    stored = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    return None if stored is None else ImageSpec.from_json(stored)
