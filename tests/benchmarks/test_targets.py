from __future__ import annotations

from benchmarks import records, targets


def record(target: str, drop: float, latency: dict[str, float] | None, source: str = "module") -> dict[str, object]:
    return {
        "network": "small",
        "source": source,
        "images_apart": 0.0001,
        "top1_equal": 0.995,
        "target": target,
        "float_top1": 80.0,
        "count": 400,
        "drop_points": drop,
        "standard_error": 0.25,
        "integer_kernels": 3,
        "float_kernels": 1,
        "verified": target != "tensorrt",
        "size_bytes": {"float": 4000, "quantized": 1000},
        "latency_ms": latency,
    }


def test_the_table_shows_the_newest_of_every_target(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    for entry in (
        record("openvino", 9.0, {"float": 1.0, "quantized": 1.0}),
        record("openvino", 0.5, {"float": 2.0, "quantized": 1.0}),
        record("tensorrt", 0.25, None),
        record("openvino", 0.5, {"float": 2.0, "quantized": 1.0}, ".onnx"),
    ):
        records.append(targets.SUITE, entry)
    head = "| small (80.00 %, 400) |"
    assert targets.targets_table().splitlines()[2:] == [
        f"{head} module | openvino | 0.50 | 0.25 | 3 of 4 | yes | 4 -> 1 | 2.0 -> 1.0 | - | - |",
        f"{head} module | tensorrt | 0.25 | 0.25 | 3 of 4 | no | 4 -> 1 | not run here | - | - |",
        f"{head} .onnx | openvino | 0.50 | 0.25 | 3 of 4 | yes | 4 -> 1 | 2.0 -> 1.0 | 0.0001 | 99.5% |",
    ]
