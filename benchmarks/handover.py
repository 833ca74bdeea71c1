"""Images handed to other quantizers: what their int8 files lose, calibrated with ours and with real images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import int8, latency, records
from benchmarks.networks import REAL, Benchmark, load_benchmarks
from benchmarks.rows import Records, headed, latest, mean_and_deviation, ratio, spread, unique
from dffg.config import SynthesisConfig
from dffg.evaluation.metrics import compare
from dffg.export.onnx import write_float
from dffg.export.runtimes import runtime_for
from dffg.graph.captured import Captured, capture
from dffg.graph.fold import fold_batch_norms
from dffg.handover import INPUT_NAME, nncf_dataset
from dffg.images import SyntheticSet
from dffg.machine.environment import package_version
from dffg.quant.placement import prepare
from dffg.spec import Array
from dffg.synthesis.synthesize import synthesize_set

SUITE = "handover"

Quantize = Callable[[Path, Path, SyntheticSet], None]


def nncf_quantize(source: Path, target: Path, images: SyntheticSet) -> None:
    """NNCF at its defaults, on an ONNX file."""
    import nncf

    onnx.save(nncf.quantize(onnx.load(source), nncf_dataset(images, INPUT_NAME), subset_size=len(images)), target)


def nncf_quantize_per_tensor(source: Path, target: Path, images: SyntheticSet) -> None:
    """NNCF as in the example, on an ONNX file."""
    import nncf

    dataset = nncf_dataset(images, INPUT_NAME)
    quantized = nncf.quantize(onnx.load(source), dataset, subset_size=len(images), advanced_parameters=_per_tensor())
    onnx.save(quantized, target)


def nncf_quantize_openvino(source: Path, target: Path, images: SyntheticSet) -> None:
    """NNCF as in the example, on an OpenVINO model."""
    import nncf
    import openvino

    model, dataset = openvino.Core().read_model(source), nncf_dataset(images)
    quantized = nncf.quantize(model, dataset, subset_size=len(images), advanced_parameters=_per_tensor())
    openvino.save_model(quantized, target)


def _per_tensor() -> Any:
    """No ranges of their own for the channels that a depthwise layer reads."""
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    return nncf.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False)
    )


def quantize_static_float_answer(source: Path, target: Path, images: SyntheticSet) -> None:
    """ONNX Runtime's quantizer as in the example: the network's answer stays float."""
    latency.quantize_static(source, target, images, {"OpTypesToExcludeOutputQuantization": ["Gemm"]})


@dataclass(frozen=True)
class Tool:
    """Another quantizer: its package, the call, and the ending of the file it writes, which says what runs that."""

    package: str
    quantize: Quantize
    suffix: str = ".onnx"


TOOLS: dict[str, Tool] = {
    "quantize_static": Tool("onnxruntime", latency.quantize_static),
    "quantize_static, float answer": Tool("onnxruntime", quantize_static_float_answer),
    "NNCF": Tool("nncf", nncf_quantize),
    "NNCF, a range per tensor": Tool("nncf", nncf_quantize_per_tensor),
    "NNCF on OpenVINO, a range per tensor": Tool("nncf", nncf_quantize_openvino, ".xml"),
}


def run_suite(networks: list[str], seeds: list[int], tools: list[str]) -> None:
    """Measure every cell that is not measured yet, and append it to the results."""
    done = {(r["network"], r["tool"], r["seed"]) for r in records.read(SUITE)}
    for benchmark in load_benchmarks(networks):
        captured = capture(benchmark.model, spec=benchmark.spec)
        for seed in seeds:
            left = [tool for tool in tools if (benchmark.name, tool, seed) not in done]
            if left:
                _measure(benchmark, captured, left, seed)


def _measure(benchmark: Benchmark, captured: Captured, tools: list[str], seed: int) -> None:
    config = SynthesisConfig(count=int8.COUNT, seed=seed)
    ours = synthesize_set(captured, config)
    real = replace(ours, inputs=benchmark.real_images(config.count, seed))
    labels = benchmark.evaluation.labels
    assert labels is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        write_float(prepare(fold_batch_norms(captured)), captured.spec, source)
        reference = _answers(source, benchmark)
        for tool in tools:
            after_ours, after_real = (_quantized(TOOLS[tool], source, images, benchmark) for images in (ours, real))
            record = {
                "network": benchmark.name,
                "tool": tool,
                "version": package_version(TOOLS[tool].package),
                "seed": seed,
                "config": asdict(config),
                "ours": asdict(compare(reference, after_ours, labels)),
                "real": asdict(compare(reference, after_real, labels)),
                "beside_real": asdict(compare(after_real, after_ours, labels)),
            }
            records.append(SUITE, record)
            print(record, flush=True)


def _quantized(tool: Tool, source: Path, images: SyntheticSet, benchmark: Benchmark) -> Array:
    target = source.with_name(f"quantized{tool.suffix}")
    tool.quantize(source, target, images)
    return _answers(target, benchmark)


def _answers(path: Path, benchmark: Benchmark) -> Array:
    return np.concatenate(list(runtime_for(path).run(path, benchmark.evaluation.batches())))


def handover_table() -> str:
    """Drops of every tool by network, in points, and KL divergences to float, with our images and with real ones.

    The ratio is the geometric mean over seeds; its deviation that of the logarithm.
    """
    results = latest(records.read(SUITE), ("network", "tool", "seed"))
    lines = [
        f"| network (float top-1, images) | quantizer | drop with dffg | with {REAL} | dffg minus real | paired SE "
        f"| KL to float x 1000 with dffg | with {REAL} | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in unique(results, "network"):
        for tool in unique(results, "tool"):
            cell = [r for r in results if (r["network"], r["tool"]) == (network, tool)]
            if cell:
                lines.append(_row(network, tool, cell))
    return "\n".join(lines)


def _row(network: str, tool: str, cell: Records) -> str:
    head = headed(network, cell[0]["ours"])
    drops = [spread([r[source] for r in cell], "drop_points") for source in ("ours", "real", "beside_real")]
    error = mean_and_deviation([r["beside_real"]["standard_error"] for r in cell])[0]
    kls = [spread([r[source] for r in cell], "kl_to_float", 1000) for source in ("ours", "real")]
    quotient = ratio([math.log(r["ours"]["kl_to_float"] / r["real"]["kl_to_float"]) for r in cell])
    columns = [*drops, f"{error:.2f}", *kls, quotient]
    return f"| {head} | {tool} ({cell[-1]['version']}) | {' | '.join(columns)} |"
