"""The arena on a network of timm's hub and a folder of images in the way of ImageNet, both made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import main
from click.testing import CliRunner
from PIL import Image

from benchmarks import arena, records
from benchmarks import networks as known
from tests.networks import randomize

timm = pytest.importorskip("timm")
NETWORK = "timm:test_resnet"
ARGUMENTS = ["run", "--suite", "imagenet", "--networks", NETWORK, "--contestants", "dffg steps 1", "--seeds", "0"]


def write_images(folder: Path) -> None:
    """Two classes of three images of noise."""
    for index in range(6):
        path = folder / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train/ and val/; weights are drawn at random in place of a download."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: randomize(create(name, pretrained=False)))
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("DFFG_IMAGENET", str(tmp_path))
    for part in ("train", "val"):
        write_images(tmp_path / part)
    return tmp_path


def test_a_network_of_the_hub_has_the_users_own_images(imagenet: Path) -> None:
    (found,) = known.load_benchmarks([NETWORK])
    assert (found.name, found.spec.shape) == (NETWORK, (3, 160, 160))
    assert (len(found.calibration), found.calibration.labels) == (6, None)
    assert found.evaluation.labels is not None
    assert sorted(found.evaluation.labels) == [0, 0, 0, 1, 1, 1]


def test_the_arena_runs_on_a_network_of_the_hub(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "LARGE_BITS", ("W6A6",))  # every width is another file to export
    CliRunner().invoke(main, ARGUMENTS, catch_exceptions=False)
    (cell,) = records.read(arena.SUITE)
    assert (cell["network"], cell["label"], cell["count"]) == (NETWORK, "dffg steps 1", 6)
    assert set(cell["scores"]) == {"W6A6 minmax", "W6A6 mse"}
    assert all(np.isfinite(score["kl_to_float"]) for score in cell["scores"].values())


def test_without_a_folder_the_reason_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFFG_IMAGENET", raising=False)
    printed = CliRunner().invoke(main, ARGUMENTS, catch_exceptions=False).output
    assert f"skipped {NETWORK}: set DFFG_IMAGENET to a folder with train/ and val/" in printed
