"""The networks of the benchmarks with their weights, real calibration data and evaluation data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.config.synthesis import DFFG
from dffg.errors import DffgError, InputError
from dffg.evaluation.data import Data, load_data
from dffg.models.load import load_model
from dffg.models.weights import load_weights
from dffg.spec import Array, ImageSpec

# Where calibration images come from: the library's own generator, and data that a user would not have.
OURS, REAL = DFFG, "real images"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KWS_CALIBRATION_EXAMPLES = 100
HUB_CALIBRATION_EXAMPLES = 1024


def data_folder() -> Path:
    """Folder with `models/` and `data/`: DFFG_BENCHMARK_DATA, or `shared` beside the checkout."""
    given = os.environ.get("DFFG_BENCHMARK_DATA")
    return Path(given) if given else Path(__file__).parents[2] / "shared"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A network with real calibration data (unlabelled use only) and labelled evaluation data (scored once)."""

    name: str
    model: nn.Module
    spec: ImageSpec
    calibration: Data
    evaluation: Data

    def noise(self, count: int, seed: int) -> Array:
        """N(0, 1) in the units of the network's input."""
        return np.random.default_rng(seed).standard_normal((count, *self.spec.shape)).astype(np.float32)

    def real_images(self, count: int, seed: int) -> Array:
        """A random part of the real calibration data."""
        chosen = np.random.default_rng(seed).permutation(len(self.calibration))[:count]
        return np.concatenate(list(self.calibration.batches()))[chosen]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut is subsampled and padded with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet for CIFAR-10 (He et al. 2015) with 6 n + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (inputs, outputs, stride) in enumerate(((16, 16, 1), (16, 32, 2), (32, 64, 2)), start=1):
            layers = [
                _BasicBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(blocks)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class DsCnn(nn.Module):
    """DS-CNN for keyword spotting (MLPerf Tiny): 1x49x10 MFCC features, 12 classes, TensorFlow's `same` padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(1, 64, (10, 4), 2)])
        for _ in range(4):
            self.conv.extend([nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1)])
        self.bn = nn.ModuleList([nn.BatchNorm2d(64, eps=1e-3) for _ in range(9)])
        self.fc = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.conv, self.bn):
            x = F.relu(norm(conv(_pad_same(x, conv))))
        return self.fc(F.avg_pool2d(x, (24, 5)).flatten(1))  # type: ignore[no-any-return]


def _pad_same(x: Tensor, conv: nn.Module) -> Tensor:
    """TensorFlow's rule: output ceil(n / stride), the smaller half of the padding first."""
    assert isinstance(conv, nn.Conv2d)
    padding: list[int] = []
    for size, kernel, stride in zip(reversed(x.shape[2:]), reversed(conv.kernel_size), reversed(conv.stride)):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


def _imagenet(name: str) -> Benchmark:
    loaded = load_model(f"demo:{name}")
    assert isinstance(loaded.model, nn.Module)
    assert loaded.spec is not None
    return Benchmark(
        name=name,
        model=loaded.model.eval(),
        spec=loaded.spec,
        calibration=load_data(data_folder() / "data" / "imagenet_real_calibration", loaded.spec, labelled=False),
        evaluation=load_data(data_folder() / "data" / "imagenet_val_dev", loaded.spec, labelled=True),
    )


def cifar10_resnet20() -> CifarResNet:
    """With its weights, by the name that the command line takes."""
    return _trained_cifar("cifar10_resnet20", 3)


def _trained_cifar(name: str, blocks: int) -> CifarResNet:
    model = CifarResNet(blocks).eval()
    load_weights(model, data_folder() / "models" / f"{name}.safetensors")
    return model


def _cifar(name: str, blocks: int) -> Benchmark:
    spec = ImageSpec(shape=(3, 32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Benchmark(
        name=name,
        model=_trained_cifar(name, blocks),
        spec=spec,
        calibration=load_data(data_folder() / "data" / "cifar10_train_real.npz", spec, labelled=False),
        evaluation=load_data(data_folder() / "data" / "cifar10_test_dev.npz", spec, labelled=True),
    )


def _keyword_spotting() -> Benchmark:
    spec = ImageSpec(shape=(1, 49, 10), bounds=(-130.0, 30.0))
    model = DsCnn().eval()
    load_weights(model, data_folder() / "models" / "kws_dscnn.safetensors")
    data = load_data(data_folder() / "data" / "kws_dev.npz", spec, labelled=True)
    assert data.labels is not None
    rest = slice(KWS_CALIBRATION_EXAMPLES, None)
    return Benchmark(
        name="kws_dscnn",
        model=model,
        spec=spec,
        calibration=data.first(KWS_CALIBRATION_EXAMPLES),
        evaluation=Data(source=data.source[rest], labels=data.labels[rest], spec=spec),
    )


def _from_hub(name: str) -> Benchmark:
    """A pretrained network by the name that the command line takes, on the user's own ImageNet.

    The folder DFFG_IMAGENET holds `train` and `val` with one sub-folder per class. Calibration uses some of the former.
    """
    root = os.environ.get("DFFG_IMAGENET")
    if root is None:
        raise InputError("set DFFG_IMAGENET to a folder with train/ and val/, one sub-folder per class.")
    loaded = load_model(name)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.spec is not None
    train = load_data(Path(root) / "train", loaded.spec, labelled=False)
    chosen = np.random.default_rng(0).permutation(len(train))[:HUB_CALIBRATION_EXAMPLES]
    return Benchmark(
        name=name,
        model=loaded.model.eval(),
        spec=loaded.spec,
        calibration=Data(source=[train.source[index] for index in chosen], labels=None, spec=loaded.spec),
        evaluation=load_data(Path(root) / "val", loaded.spec, labelled=True),
    )


NETWORKS: dict[str, Callable[[], Benchmark]] = {
    "efficientnet_lite0": lambda: _imagenet("efficientnet_lite0"),
    "mobilenet_v2": lambda: _imagenet("mobilenet_v2"),
    "cifar10_resnet20": lambda: _cifar("cifar10_resnet20", 3),
    "cifar10_resnet56": lambda: _cifar("cifar10_resnet56", 9),
    "kws_dscnn": _keyword_spotting,
}


def load_benchmarks(names: Iterable[str]) -> Iterator[Benchmark]:
    """The networks that can be measured here; for the others the reason is printed.

    A name is one of `NETWORKS`, or what `dffg.load_model` takes, such as timm:resnet18.
    """
    for name in names:
        try:
            benchmark = NETWORKS[name]() if name in NETWORKS else _from_hub(name)
        except (DffgError, OSError) as error:
            print(f"skipped {name}: {error}")
        else:
            yield benchmark


def outputs_of(model: nn.Module, data: Data) -> Array:
    """Outputs of a torch network on all examples."""
    with torch.no_grad():
        return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in data.batches()])
