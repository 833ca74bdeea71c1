"""The lowest versions are read from pyproject.toml; that they work is `make lowest`."""

from __future__ import annotations

import tomllib

import pytest

from tests.lowest import ROOT, TESTS, lowest


def test_lower_bounds_become_versions() -> None:
    assert lowest(["numpy>=2.0", "ml_dtypes>=0.5.4", "onnx-ir>=1.0"]) == [
        "numpy==2.0",
        "ml_dtypes==0.5.4",
        "onnx-ir==1.0",
    ]


@pytest.mark.parametrize("text", ["numpy", "numpy<3", "numpy>=2,<3"])
def test_a_requirement_without_a_plain_lower_bound_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=rf"not of the form name>=version: {text}$"):
        lowest(["torch>=2.13", text])


def test_every_requirement_of_the_project_has_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(lowest(project["dependencies"])) == len(project["dependencies"])
    assert all((ROOT / name).is_file() for name in TESTS)
