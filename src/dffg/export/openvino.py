"""Write OpenVINO IR, run it on the CPU and look at what it does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import fx

from dffg.errors import InputError, first_line
from dffg.export.onnx import ONNX_FILE, quantized_value_name, write_float, write_quantized
from dffg.export.runtime import Kernels, Opened, Runtime, Watch
from dffg.graph.ends import join, split
from dffg.quant.quantized import Quantized
from dffg.spec import METADATA_KEY, Array, ImageSpec

_HEAVY = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_INTEGER_TYPES = ("u8", "i8")
_NO_COMPUTATION = ("Const", "Input", "Output")


def write(quantized: Quantized, spec: ImageSpec, path: Path) -> None:
    """Write IR (.xml and .bin), and beside it the ONNX file it was made of, which OpenVINO and ONNX Runtime read too.

    Q/DQ pairs and INT4 weights keep their values exactly. The file is read by OpenVINO's ONNX frontend itself:
    `openvino.convert_model` would do the same and report that it was used.
    """
    written = path.with_name(ONNX_FILE)
    write_quantized(quantized, spec, written)
    _convert(written, spec, path)


def write_float_file(module: fx.GraphModule, spec: ImageSpec, path: Path) -> None:
    """Write a float network, to compare size and speed with."""
    written = path.with_suffix(".onnx")
    write_float(module, spec, written)
    _convert(written, spec, path)


def open_file(path: Path, threads: int = 0) -> Opened:
    """Load a file."""
    compiled = _compile(_read(path), threads)
    count = len(compiled.outputs)
    return Opened(run=lambda batch: _run(compiled, batch, count)[0], outputs=count)


def watch(quantized: Quantized, path: Path) -> Watch:
    """A written file as a function that also gives the integers of every quantized tensor."""
    model = _read(path)
    count, names = len(model.outputs), [tensor.name for tensor in quantized.tensors]
    model.add_outputs([quantized_value_name(name) for name in names])
    compiled = _compile(model, 0)

    def run_batch(batch: Array) -> tuple[Array, dict[str, NDArray[Any]]]:
        output, results = _run(compiled, batch, count)
        return output, {name: results[quantized_value_name(name)].copy() for name in names}

    return run_batch


def _run(compiled: Any, batch: Array, count: int) -> tuple[Array, Any]:
    """The first `count` outputs, joined, and all results."""
    shapes = [[axis.get_length() for axis in list(entry.partial_shape)[1:]] for entry in compiled.inputs]
    results = compiled(split(batch, shapes))
    return join([results[index].copy() for index in range(count)]), results


def count_kernels(path: Path) -> Kernels:
    """Let OpenVINO compile the file and read the precision in which it will execute every layer.

    Source: `ExecutionMode` of the runtime model, docs.openvino.ai, "Runtime model" (layerType, runtimePrecision).
    """
    operators = _compile(_read(path), 0).get_runtime_model().get_ordered_ops()
    executed = [(_information(op, "layerType"), _information(op, "runtimePrecision")) for op in operators]
    heavy = [precision in _INTEGER_TYPES for kind, precision in executed if kind in _HEAVY]
    other = Counter(kind for kind, _ in executed if kind not in _HEAVY and kind not in _NO_COMPUTATION)
    return Kernels(integer=sum(heavy), float=len(heavy) - sum(heavy), other=dict(sorted(other.items())))


def read_spec(path: Path) -> ImageSpec | None:
    """The input description that dffg wrote into a file; None in files of others."""
    model = _read(path)
    if not model.has_rt_info([METADATA_KEY]):
        return None
    return ImageSpec.from_json(model.get_rt_info([METADATA_KEY]).astype(str))


def _convert(source: Path, spec: ImageSpec, path: Path) -> None:
    import openvino

    model = _read(source)
    model.set_rt_info(spec.to_json(), [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _read(path: Path) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(path)
    except Exception as error:
        raise InputError(f"OpenVINO cannot load {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong, behind the lines that say where in OpenVINO it was found."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check "))]
    return lines[0] if lines else first_line(error)


def _compile(model: Any, threads: int) -> Any:
    """For the CPU. What is not integer is computed in 32 bits, which CPUs with bfloat16 would not do by themselves."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(
        model, "CPU", options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    )


def _information(operator: Any, name: str) -> str:
    found: str = operator.get_rt_info()[name].astype(str)
    return found


RUNTIME = Runtime(
    suffixes=(".xml", ".bin"),
    write=write,
    write_float=write_float_file,
    open=open_file,
    watch=watch,
    count_kernels=count_kernels,
    read_spec=read_spec,
    requires=("openvino",),
)
