from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dffg.errors import InputError
from dffg.evaluation.data import load_data
from dffg.pipeline.evaluate import evaluate
from dffg.spec import ImageSpec

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
classes (float[n, 3, 8, 8] x) => (int64[n] y) {
    pooled = GlobalAveragePool(x)
    scores = Flatten(pooled)
    y = ArgMax <axis = 1, keepdims = 0> (scores)
}"""


def test_a_file_that_answers_with_classes_is_refused(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "classes.onnx")
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.arange(4) % 3)
    data = load_data(tmp_path / "data.npz", ImageSpec(shape=(3, 8, 8)), labelled=True)
    with pytest.raises(InputError, match="answers with one number for every example, and top-1 needs scores for every"):
        evaluate(tmp_path / "classes.onnx", data)
