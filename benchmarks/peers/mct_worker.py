"""Images from Sony's Model Compression Toolkit. Run by the interpreter of its own environment; see `mct.py`.

Works with torch 2.14 as it is, although MCT 2.6.1 names 2.6 as its newest: all that newer versions changed for this
part of it are warnings (`_silence`). One function is replaced, for timm's networks: `_trace`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import NETWORKS
from dffg.errors import DffgError
from dffg.spec import Array, ImageSpec

UNSUPPORTED = 3
WARM_UP_ITERATIONS = 2
MIN_TIMED_ITERATIONS = 10

# MCT knows these two normalizations (and none at all, for inputs of 0 to 255), by mean and standard deviation.
_NORMALIZATIONS: dict[tuple[tuple[float, ...], ...], str] = {
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "TORCHVISION",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "KERAS_APPLICATIONS",
}


class UnsupportedNetworkError(Exception):
    """A network MCT cannot make images for; the message is the reason in one line."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one call of MCT gave: inputs, how long it all took, and the time at each optimizer step."""

    inputs: Array
    seconds: float
    step_times: list[float]

    def seconds_per_iteration(self, iterations: int) -> float | None:
        """One step on every batch, without MCT's preparations; None where there are too few to tell."""
        if iterations < MIN_TIMED_ITERATIONS:
            return None
        batches = len(self.step_times) // iterations
        return (self.step_times[-1] - self.step_times[batches - 1]) / (iterations - 1)


def main() -> None:
    """Make images and write them, or say why not and exit with 3."""
    arguments = _parse()
    # MCT takes any GPU it sees, with half precision; the figures it is compared with are of CPU threads.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(arguments.threads)
    _silence()
    try:
        inputs, metadata = make_images(arguments)
    except (UnsupportedNetworkError, DffgError) as error:
        print(f"{arguments.network}: {error}", file=sys.stderr)
        raise SystemExit(UNSUPPORTED) from None
    np.savez(arguments.out, inputs=inputs, metadata=np.asarray(json.dumps(metadata)))
    print(json.dumps(metadata))


def make_images(arguments: argparse.Namespace) -> tuple[Array, dict[str, Any]]:
    """Warm up, run MCT, describe the run."""
    benchmark = NETWORKS[arguments.network]()
    normalization = _normalization(benchmark.spec)
    size = (benchmark.spec.shape[1], benchmark.spec.shape[2])
    mct = importlib.import_module("model_compression_toolkit")
    generation: Any = importlib.import_module(f"{mct.__name__}.data_generation.pytorch.pytorch_data_generation")
    generation.symbolic_trace = _trace

    def run(images: int, iterations: int) -> Run:
        return _run(mct, benchmark.model, normalization, size, images, iterations, arguments.batch)

    # The first passes also pay for memory and for choosing kernels.
    warm_up = run(min(arguments.images, arguments.batch), WARM_UP_ITERATIONS)
    _seed(arguments.seed)
    timed = run(arguments.images, arguments.iterations)
    metadata = {
        "peer": "model-compression-toolkit",
        "peer_version": mct.__version__,
        "torch_version": torch.__version__,
        "network": arguments.network,
        "images": len(timed.inputs),
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "iterations": arguments.iterations,
        # One forward and one backward pass of every batch in every iteration.
        "passes_per_image": arguments.iterations,
        "batch_size": arguments.batch,
        "normalization": normalization,
        "seconds": timed.seconds,
        "seconds_per_iteration": timed.seconds_per_iteration(arguments.iterations),
        "warm_up_seconds": warm_up.seconds,
    }
    return timed.inputs, metadata


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", required=True, choices=sorted(NETWORKS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=500, help="MCT's default: 500")
    parser.add_argument("--batch", type=int, default=32, help="MCT's default: 32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _silence() -> None:
    """Hide what newer torch says about MCT's code at every step; none of it changes a result.

    `torch.cuda.amp.autocast` and `GradScaler` are deprecated names and switch themselves off without a GPU;
    `meshgrid` wants its present order of indices spelled out.
    """
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*CUDA is not available", category=UserWarning)
    warnings.filterwarnings("ignore", message=r"torch\.meshgrid", category=UserWarning)


def _normalization(spec: ImageSpec) -> str:
    """Name of the network's normalization in MCT, which also bounds the images."""
    if not spec.is_pixels or spec.shape[0] != 3:
        raise UnsupportedNetworkError(
            f"MCT makes pictures of 3 channels only, and the input is {'x'.join(map(str, spec.shape))}."
        )
    name = _NORMALIZATIONS.get((spec.mean, spec.std))
    if name is None:
        raise UnsupportedNetworkError(f"MCT has no normalization with mean {spec.mean} and std {spec.std}.")
    return name


class _Tracer(torch.fx.Tracer):
    """Keeps every convolution and BatchNorm whole, also those that other libraries derive from torch's."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        kept = isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)
        return kept or super().is_leaf_module(m, module_qualified_name)


def _trace(model: torch.nn.Module) -> torch.fx.GraphModule:
    """In place of MCT's `symbolic_trace`, which fails inside timm's convolutions with TensorFlow's padding.

    MCT runs the network itself and reads the traced graph only to find the last layer, so no image depends on it.
    """
    try:
        return torch.fx.GraphModule(model, _Tracer().trace(model))
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise UnsupportedNetworkError(f"MCT needs a network that torch.fx can trace: {error}") from error


def _seed(seed: int) -> None:
    """MCT takes no seed: noise and crops come from torch's generator, the order of batches from NumPy's."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _run(
    mct: Any,
    model: torch.nn.Module,
    normalization: str,
    size: tuple[int, int],
    images: int,
    iterations: int,
    batch: int,
) -> Run:
    """Call MCT once; what is not given here is MCT's default."""
    enums = importlib.import_module("model_compression_toolkit.data_generation.common.enums")
    times: list[float] = []

    def optimizer(parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
        # MCT's default optimizer; only the clock is ours.
        made = torch.optim.RAdam(parameters, lr=lr)
        made.register_step_post_hook(lambda *_: times.append(time.perf_counter()))
        return made

    config = mct.data_generation.get_pytorch_data_generation_config(
        n_iter=iterations,
        data_gen_batch_size=batch,
        optimizer=optimizer,
        image_normalization_type=enums.ImageNormalizationType[normalization],
    )
    start = time.perf_counter()
    made = mct.data_generation.pytorch_data_generation_experimental(
        model=model, n_images=images, output_image_size=size, data_generation_config=config
    )
    seconds = time.perf_counter() - start
    return Run(inputs=torch.cat(made).float().numpy(), seconds=seconds, step_times=times)


if __name__ == "__main__":
    main()
