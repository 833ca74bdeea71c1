"""A malicious pickle, in every place that takes a file: it is refused, and nothing of it runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dffg.cli import recipe_file
from dffg.cli.jobs_file import read_jobs
from dffg.cli.quantize import quantize
from dffg.errors import DffgError
from dffg.evaluation.data import Data, load_data
from dffg.graph.fold import fold_batch_norms
from dffg.images import SyntheticSet
from dffg.models.load import load_model
from dffg.models.weights import load_weights
from dffg.pipeline.evaluate import evaluate
from dffg.quant.placement import prepare
from dffg.quant.stored import load_parameters
from dffg.report.result import load_report
from dffg.spec import ImageSpec
from dffg.storage.checkpoint import Checkpoint, refuse_other_work, sealed
from tests.models.test_load import Evil
from tests.networks import captured, small_conv

SPEC = ImageSpec(shape=(1, 2, 2))


def saved_by_torch(evil: Evil) -> bytes:
    stream = io.BytesIO()
    torch.save({"subject": "this", "state": evil}, stream)
    return stream.getvalue()


def arrays(evil: Evil) -> bytes:
    """Objects under every name that a reader may ask for."""
    names = ("images", "features", "labels", "metadata", "quantized_weights")
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array([evil], dtype=object) for name in names})
    return stream.getvalue()


def program(evil: Evil) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("network/archive_format", "pt2")
        archive.writestr("network/models/model.json", "{}")
        archive.writestr("network/data/constants/evil", pickle.dumps(evil))
        archive.writestr("network/data/weights/weights.pt", saved_by_torch(evil))
    return stream.getvalue()


FORMS: dict[str, Callable[[Evil], bytes]] = {
    "pickle": lambda evil: pickle.dumps(evil, protocol=2),
    "torch": saved_by_torch,
    "sealed": lambda evil: sealed(saved_by_torch(evil)),
    "npz": arrays,
    "pt2": program,
}


def parameters(path: Path) -> Any:
    return load_parameters(path, prepare(fold_batch_norms(captured("gray"))))


def checkpoint(path: Path) -> None:
    """What cannot be read is as if it were not there: the work starts anew."""
    if Checkpoint(path.parent, "this").load(path.stem) is None:
        raise DffgError


def work(path: Path) -> None:
    """What cannot be read says nothing; what could be is of other work."""
    refuse_other_work(path.parent, {"bits": "W4A4"})
    raise DffgError


def evaluated(path: Path) -> Any:
    return evaluate(path, Data(source=np.zeros((1, *SPEC.shape), np.float32), labels=np.zeros(1, np.int64), spec=SPEC))


PLACES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "program": ("network.pt2", lambda path: load_model(str(path))),
    "onnx": ("network.onnx", lambda path: load_model(str(path))),
    "weights.pth": ("weights.pth", lambda path: load_weights(small_conv(), path)),
    "weights.safetensors": ("weights.safetensors", lambda path: load_weights(small_conv(), path)),
    "data": ("data.npz", lambda path: load_data(path, SPEC, labelled=True)),
    "calibration": ("data.npz", lambda path: load_data(path, SPEC, labelled=False)),
    "data.safetensors": ("data.safetensors", lambda path: load_data(path, SPEC, labelled=True)),
    "picture": (
        "picture.png",
        lambda path: list(load_data(path.parent, SPEC, labelled=False).batches()),
    ),
    "labels": ("labels.csv", lambda path: load_data(path.parent, SPEC, labelled=True)),
    "images.safetensors": ("images.safetensors", SyntheticSet.load),
    "evaluate.pt2": ("model.pt2", evaluated),
    "evaluate.onnx": ("model.onnx", evaluated),
    "evaluate.xml": ("model.xml", evaluated),
    "images": ("images.npz", SyntheticSet.load),
    "parameters": ("parameters.npz", parameters),
    "report": ("report.json", load_report),
    "recipe": ("recipe.yaml", lambda path: recipe_file.read(path, {})),
    "jobs": ("jobs.yaml", lambda path: read_jobs(path, dict(recipe_file.recipe_parameters(quantize)))),
    "work": ("work.json", work),
    "checkpoint": ("chain-0.pt", checkpoint),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_in_a_file_runs(place, form, tmp_path):
    mark = tmp_path / "executed"
    name, read = PLACES[place]
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / name).write_bytes(FORMS[form](Evil(mark)))
    error = None
    try:
        read(folder / name)
    except DffgError as caught:
        error = caught
    assert not mark.exists(), "code of the file was run"
    assert error is not None, "the file was taken"


@pytest.mark.parametrize("form", FORMS)
def test_the_files_are_malicious(form, tmp_path):
    """They do run where somebody unpickles."""
    mark = tmp_path / "executed"
    content = FORMS[form](Evil(mark))
    if form == "pickle":
        pickle.loads(content)
    elif form == "npz":
        np.load(io.BytesIO(content), allow_pickle=True)["images"]
    elif form == "pt2":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickle.loads(archive.read("network/data/constants/evil"))
    else:
        offset = len(content) - len(saved_by_torch(Evil(mark)))
        torch.load(io.BytesIO(content[offset:]), weights_only=False)
    assert mark.exists()
