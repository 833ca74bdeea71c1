"""Run files in ONNX Runtime and look at what it does with them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dffg.errors import InputError

INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "DynamicQuantizeMatMul",
    }
)
FLOAT_KERNELS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
_ERRORS_ONLY = 3

# Nothing about anyone's network leaves the machine through us.
onnxruntime.disable_telemetry_events()


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Convolutions and matrix products in the graph that ONNX Runtime executes, by kind; `other` counts the rest."""

    integer: int
    float: int
    other: dict[str, int]


def session(model: Path | bytes, *, threads: int = 0, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a file on the CPU. Threads do not spin between runs, so that two sessions do not slow each other."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot load the file: {error}") from error


def count_kernels(path: Path) -> Kernels:
    """Load the file, let ONNX Runtime optimise it, and count what it will execute."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        counts = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    heavy = INTEGER_KERNELS | FLOAT_KERNELS
    return Kernels(
        integer=sum(count for kind, count in counts.items() if kind in INTEGER_KERNELS),
        float=sum(count for kind, count in counts.items() if kind in FLOAT_KERNELS),
        other={kind: count for kind, count in sorted(counts.items()) if kind not in heavy},
    )


def run(path: Path, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Outputs of the file, batch by batch."""
    opened = session(path)
    name = opened.get_inputs()[0].name
    for batch in batches:
        yield opened.run(None, {name: batch})[0]


class IntermediateRunner:
    """Runs a file and shows named values inside it."""

    def __init__(self, path: Path, names: list[str]) -> None:
        model = onnx.load(path)
        types = {info.name: info for info in model.graph.value_info}
        model.graph.output.extend(types.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        self._session = session(model.SerializeToString())
        self._names = names

    def run(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """The output for one batch, and the named values."""
        output, *values = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        return output, dict(zip(self._names, values, strict=True))


def latency_ms(
    paths: dict[str, Path], batch: NDArray[np.float32], *, repeats: int = 15, threads: int = 0
) -> dict[str, float]:
    """Median milliseconds per run of each file, measured in turns so that a busy machine slows all alike."""
    sessions = {label: session(path, threads=threads) for label, path in paths.items()}
    times: dict[str, list[float]] = {label: [] for label in paths}
    for _ in range(repeats + 2):
        for label, opened in sessions.items():
            feed = {opened.get_inputs()[0].name: batch}
            started = time.perf_counter()
            opened.run(None, feed)
            times[label].append((time.perf_counter() - started) * 1e3)
    return {label: statistics.median(measured[2:]) for label, measured in times.items()}
