"""Run files in ONNX Runtime and look at what it does with them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dffg.errors import InputError
from dffg.export.onnx import quantized_value_name, write_float, write_quantized
from dffg.export.runtime import Kernels, Opened, Runtime, Watch
from dffg.graph.ends import join, split
from dffg.machine.device import is_out_of_memory
from dffg.onnx_file import read_spec
from dffg.quant.quantized import Quantized
from dffg.spec import Array

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


def session(
    model: Path | bytes,
    *,
    threads: int = 0,
    optimized: Path | None = None,
    as_written: bool = False,
    sparing: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a file on the CPU. Threads do not spin between runs, so that two sessions do not slow each other.

    as_written: every operator is computed as the file has it, in float, and nothing is fused. sparing: no memory is
    kept for the next run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = not sparing
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"ONNX Runtime cannot load the file: {error}") from error


def count_kernels(path: Path) -> Kernels:
    """Load the file, let ONNX Runtime optimize it, and count what it will execute."""
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


def open_file(path: Path, threads: int = 0, *, as_written: bool = False) -> Opened:
    """Load a file."""
    opened = session(path, threads=threads, as_written=as_written)
    return Opened(run=lambda batch: join(opened.run(None, _feeds(opened, batch))), outputs=len(opened.get_outputs()))


def _feeds(opened: onnxruntime.InferenceSession, batch: Array) -> dict[str, Array]:
    inputs = opened.get_inputs()
    parts = split(batch, [entry.shape[1:] for entry in inputs])
    return {entry.name: part for entry, part in zip(inputs, parts, strict=True)}


def run(path: Path, batches: Iterable[Array]) -> Iterator[Array]:
    """Outputs of the file, batch by batch."""
    return map(open_file(path).run, batches)


def watch(quantized: Quantized, path: Path, *, as_written: bool = False) -> Watch:
    """A written file as a function that also gives the integers of every quantized tensor."""
    stored = {quantized_value_name(tensor.name): tensor.name for tensor in quantized.tensors}
    runner = IntermediateRunner(path, list(stored), as_written=as_written)

    def run_batch(batch: Array) -> tuple[Array, dict[str, NDArray[Any]]]:
        output, values = runner.run(batch)
        return output, {stored[name]: levels for name, levels in values.items()}

    return run_batch


class IntermediateRunner:
    """Runs a file and shows named values inside it."""

    def __init__(self, path: Path, names: list[str], *, as_written: bool = False) -> None:
        model = onnx.load(path)
        types = {info.name: info for info in model.graph.value_info}
        self._outputs = len(model.graph.output)
        model.graph.output.extend(types.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        self._session = session(model.SerializeToString(), as_written=as_written, sparing=True)
        self._names = names

    def run(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """The output for one batch, and the named values."""
        results = self._session.run(None, _feeds(self._session, batch))
        return join(results[: self._outputs]), dict(zip(self._names, results[self._outputs :], strict=True))


RUNTIME = Runtime(
    suffixes=(".onnx",),
    write=write_quantized,
    write_float=write_float,
    open=open_file,
    watch=watch,
    count_kernels=count_kernels,
    read_spec=read_spec,
)
