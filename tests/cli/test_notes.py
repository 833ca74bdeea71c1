"""What commands say on standard error before the work: what they assume, and which options have no effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from dffg.cli.quantize import _without_effect
from dffg.config import LearningConfig, QuantizationConfig
from tests.cli import test_cli
from tests.cli.test_cli import QUICK, TINY, run

here, labelled = test_cli.here, test_cli.labelled  # fixtures
ASSUMED = "dffg: no --mean, --std or --bounds were given: assuming pixels in [0, 1] without normalization\n"
UNUSED = "--learning-seconds without effect: nothing is learned at W8A8 with the recipe fast; --recipe balanced learns"


@pytest.fixture(scope="module")
def foreign(here: Path) -> Path:
    """A file that says nothing of its input."""
    options = ("--mean", "0.5", "--std", "0.25", "--quiet", "--learning-seconds", "3")
    ended = run("quantize", *TINY, "--out", here / "noted", *QUICK, *options)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    model = onnx.load(here / "noted" / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, here / "foreign.onnx")
    return here / "foreign.onnx"


def evaluate(file: Path, data: Path, *options: str) -> str:
    ended = run("evaluate", file, "--data", data, "--input", "3x16x16", *options)
    assert ended.code == 0, ended.err
    return ended.err


def test_evaluate_says_what_it_assumes_of_a_foreign_file(foreign: Path, labelled: Path) -> None:
    assert evaluate(foreign, labelled) == ASSUMED
    assert evaluate(foreign, labelled, "--json") == ASSUMED
    assert evaluate(foreign, labelled, "--quiet") == ""
    for option in (("--mean", "0"), ("--std", "1"), ("--bounds", "0:1")):
        assert evaluate(foreign, labelled, *option) == ""


def test_evaluate_assumes_nothing_that_a_file_or_the_data_say(foreign: Path, labelled: Path, tmp_path: Path) -> None:
    assert evaluate(foreign.parent / "noted" / "model.onnx", labelled) == ""
    with np.load(labelled) as arrays:
        features = arrays["images"].astype(np.float32) / 255
        np.savez(tmp_path / "features.npz", features=features, labels=arrays["labels"])
    assert evaluate(foreign, tmp_path / "features.npz") == ""


def test_options_of_learning_where_nothing_is_learned_are_said(here: Path, foreign: Path, tmp_path: Path) -> None:
    notes = json.loads((here / "noted" / "report.json").read_text())["notes"]
    assert any(note.startswith(UNUSED) for note in notes)
    ended = run("quantize", "no:network", "--out", tmp_path / "out", "--learning-seconds", "3")
    assert ended.err.startswith(f"dffg: {UNUSED}")


@pytest.mark.parametrize(
    ("bits", "learning", "says"),
    [
        ("W8A8", {}, None),
        ("W8A8", {"learning_images": 0}, None),
        ("W8A8", {"learning_images": 9}, "--learning-images without effect: nothing is learned"),
        ("W8A8", {"learning_images": 9, "learning_seconds": 3}, "--learning-seconds and --learning-images without"),
        ("W8A8", {"learning_images": 9, "learning_seconds": 3, "recipe": "balanced"}, None),
        ("W4A4", {"learning_images": 9, "learning_seconds": 3}, None),
        ("W4A4", {"learning_seconds": 3, "recipe": "fast"}, "nothing is learned at W4A4 with the recipe fast"),
        ("W8A8", {"learning_images": 9, "finetune_steps": 2}, None),
        ("W8A8", {"learning_seconds": 3, "finetune_steps": 2}, "effect: no rounding is learned at W8A8"),
    ],
)
def test_what_is_without_effect(bits: str, learning: dict[str, object], says: str | None) -> None:
    found = _without_effect(LearningConfig(**learning), QuantizationConfig(bits=bits))
    assert found is None if says is None else says in found
