from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dffg.errors import InputError
from dffg.export import runtime, runtimes
from dffg.export.runtime import latency_ms
from dffg.export.runtimes import RUNTIMES, runtime_for, runtime_of
from dffg.targets import TARGETS


def test_every_target_has_a_runtime():
    assert list(RUNTIMES) == list(TARGETS)


def test_latency_is_the_median_without_the_first_two_runs(monkeypatch):
    # start and end of every run: the two for warming up take long, then 1, 5 and 3 ms
    clock = iter(np.cumsum([0, 9, 0, 9, 0, 1e-3, 0, 5e-3, 0, 3e-3]).tolist())
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    assert latency_ms({"a": lambda batch: batch}, np.zeros((1, 2), np.float32), repeats=3) == {"a": pytest.approx(3.0)}


def test_latency_is_measured_in_turns():
    order: list[str] = []
    runs = {name: lambda batch, name=name: order.append(name) or batch for name in ("float", "quantized")}
    assert list(latency_ms(runs, np.zeros((1, 2), np.float32), repeats=3)) == ["float", "quantized"]
    assert order == ["float", "quantized"] * 5


@pytest.mark.parametrize(
    ("name", "target"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino"), ("deep/model.pt2", "torch")]
)
def test_the_ending_of_a_file_tells_its_runtime(name, target):
    assert runtime_for(Path(name)) is RUNTIMES[target]


def test_a_file_that_nothing_reads_is_refused_with_what_could_be():
    with pytest.raises(InputError, match=r"model\.tflite is none of .*\.onnx, \.xml"):
        runtime_for(Path("model.tflite"))


def test_a_runtime_that_is_not_installed_is_refused_with_what_brings_it(monkeypatch):
    absent = replace(RUNTIMES["openvino"], requires=("no_such_package",))
    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", absent)
    with pytest.raises(InputError, match=r"no_such_package is not installed.*'dffg\[openvino\]'"):
        runtime_of("openvino")


def test_the_size_is_that_of_everything_that_is_loaded(tmp_path):
    for suffix, size in ((".xml", 3), (".bin", 5), (".onnx", 7)):
        (tmp_path / f"model{suffix}").write_bytes(b"x" * size)
    assert RUNTIMES["openvino"].size_bytes(tmp_path / "model.xml") == 8
    assert RUNTIMES["onnxruntime"].size_bytes(tmp_path / "model.onnx") == 7
