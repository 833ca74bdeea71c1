"""The public names, however and in whatever order they are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dffg


def test_public_names_are_objects_and_not_modules() -> None:
    """A module of the package with the name of a public function would hide it once it is imported."""
    code = (
        "import dffg, dffg.cli.main, dffg.pipeline.steps, dffg.pipeline.inspect, types\n"
        "assert not [name for name in dffg.__all__ if isinstance(getattr(dffg, name), types.ModuleType)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_importable_from_one_home() -> None:
    assert sorted(dffg._HOME_OF) == sorted(dffg.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dffg.nonsense
