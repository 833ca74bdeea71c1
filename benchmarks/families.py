"""Families of networks from the command to a verified file (docs/models.md).

Architectures of torchvision and timm as they are, and a few from papers that neither has. Where no weights can be had
without a download they are random, and every BatchNorm is given the statistics that it has on random images: what is
measured is what goes and what stays in float, not accuracy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import records
from benchmarks.networks import DsCnn, data_folder
from benchmarks.rows import latest
from dffg.models.weights import load_weights
from dffg.spec import shape_text

SUITE = "families"
_ROOT = Path(__file__).parents[1]
_IMAGES = ["--images", "16"]
_STEPS_APART, _EQUAL = "max_abs_difference_in_steps", "equal_share"


@dataclass(frozen=True, kw_only=True)
class Family:
    """name: of the network, for people; what: it stands for; input: options of the command line for its inputs.

    bias: mean of the random biases of its BatchNorms, in deviations.
    """

    name: str
    what: str
    make: Callable[[], nn.Module]
    input: tuple[str, ...]
    trained: bool = False
    bias: float = 0.0

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of every input."""
        given = self.input[self.input.index("--input") + 1]
        return [tuple(map(int, shape.split("x"))) for shape in given.split("/")]


class M5(nn.Module):
    """Convolutions over raw sound (Dai et al., ICASSP 2017)."""

    def __init__(self, classes: int = 35, width: int = 32) -> None:
        super().__init__()
        sizes = [(1, width, 80, 16), (width, width, 3, 1), (width, 2 * width, 3, 1), (2 * width, 2 * width, 3, 1)]
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in sizes:
            layers += [nn.Conv1d(inputs, outputs, kernel, stride), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.body(x).mean(2)), 1)


class Crnn(nn.Module):
    """Text in pictures: convolutions, then two LSTMs along the line (Shi et al., PAMI 2017)."""

    def __init__(self, letters: int = 37) -> None:
        super().__init__()
        sizes = [(1, 64, (2, 2)), (64, 128, (2, 2)), (128, 256, (2, 1)), (256, 256, (2, 1)), (256, 512, (2, 1))]
        layers: list[nn.Module] = []
        for inputs, outputs, pool in sizes:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool)]
        self.body = nn.Sequential(*layers)
        self.lines, self.head = nn.LSTM(512, 256, 2, bidirectional=True, batch_first=True), nn.Linear(512, letters)

    def forward(self, x: Tensor) -> Tensor:
        lines, _ = self.lines(self.body(x).squeeze(2).mT)
        return self.head(lines)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Down, and up again by transposed convolutions (Ronneberger et al., MICCAI 2015), with BatchNorm."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(_pair, (1, *widths), widths))
        self.middle = _pair(widths[-1], 2 * widths[-1])
        above = [*reversed(widths)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in above)
        self.join = nn.ModuleList(_pair(2 * width, width) for width in above)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for pair in self.down:
            kept.append(pair(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.middle(x)
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [nn.Conv2d(first, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class TwoStreams(nn.Module):
    """What is seen and how it moves, each through a network of its own (Simonyan and Zisserman, NIPS 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.moving = timm("mobilenetv3_small_100"), timm("mobilenetv3_small_100", in_chans=10)

    def forward(self, picture: Tensor, flow: Tensor) -> Tensor:
        return (self.seen(picture) + self.moving(flow)) / 2  # type: ignore[no-any-return]


class SsdLite(nn.Module):
    """SSDlite without what chooses among its boxes."""

    def __init__(self) -> None:
        super().__init__()
        whole = torchvision("ssdlite320_mobilenet_v3_large", weights_backbone=None)
        self.backbone, self.head = whole.get_submodule("backbone"), whole.get_submodule("head")

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def timm(name: str, **options: Any) -> nn.Module:
    """An architecture of timm."""
    import timm

    made: nn.Module = timm.create_model(name, **options)
    return made


def torchvision(name: str, **options: Any) -> nn.Module:
    """An architecture of torchvision."""
    from torchvision.models import get_model

    made: nn.Module = get_model(name, weights=None, **options)
    return made


def _keyword_spotting() -> nn.Module:
    model = DsCnn()
    load_weights(model, data_folder() / "models" / "kws_dscnn.safetensors")
    return model


def _pictures(size: str) -> tuple[str, ...]:
    return ("--input", size, "--mean", "0.5", "--std", "0.25")


# Activations that bend where BatchNorm centers what they read make a deep random network chaotic: noise of a tenth of
# the input's deviation is 7 times as much of LCNet's answer and 5 of EfficientNet-B0's, against 3 to 4 in trained
# MobileNetV2 and EfficientNet-Lite0. Half a deviation above the bend it is 5 and 4 times; less varied scales and biases
# change nothing.
_ABOVE_THE_BEND = 0.5

FAMILIES: dict[str, Family] = {
    "dscnn": Family(
        name="DS-CNN",
        what="sound, 1 channel, not square",
        make=_keyword_spotting,
        input=("--input", "1x49x10", "--bounds=-130:30"),
        trained=True,
    ),
    "m5": Family(name="M5", what="1d", make=M5, input=("--input", "1x8000", "--bounds=-1:1")),
    "r3d": Family(name="R3D-18", what="3d", make=lambda: torchvision("r3d_18"), input=_pictures("3x8x56x56")),
    "two_streams": Family(
        name="two MobileNetV3 small",
        what="2 inputs, 3 and 10 channels",
        make=TwoStreams,
        input=("--input", "3x96x96/10x96x96", "--mean", "0.5/0", "--std", "0.25/1", "--bounds=0:1/-2:2"),
    ),
    "lraspp": Family(
        name="LR-ASPP, MobileNetV3",
        what="segmentation, dictionary, not square",
        make=lambda: torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),
        input=_pictures("3x96x128"),
    ),
    "deeplab": Family(
        name="DeepLabV3, MobileNetV3",
        what="segmentation, dilated",
        make=lambda: torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None),
        input=_pictures("3x96x96"),
    ),
    "unet": Family(name="U-Net", what="transposed convolutions", make=UNet, input=_pictures("1x64x64")),
    "ssdlite": Family(
        name="SSDlite, MobileNetV3", what="detection, 12 outputs", make=SsdLite, input=_pictures("3x160x160")
    ),
    "features": Family(
        name="MobileNetV3 small, 5 depths",
        what="list of outputs",
        make=lambda: timm("mobilenetv3_small_100", features_only=True),
        input=_pictures("3x96x96"),
    ),
    "crnn": Family(name="CRNN", what="LSTM tail", make=Crnn, input=_pictures("1x32x100")),
    "four_channels": Family(
        name="ResNet-18", what="4 channels", make=lambda: timm("resnet18", in_chans=4), input=_pictures("4x64x64")
    ),
    "thirteen_channels": Family(
        name="LCNet 0.5",
        what="13 channels, Hardswish",
        make=lambda: timm("lcnet_050", in_chans=13),
        input=_pictures("13x64x64"),
        bias=_ABOVE_THE_BEND,
    ),
    "prelu": Family(
        name="ResNet-18 with PReLU",
        what="PReLU",
        make=lambda: timm("resnet18", act_layer=lambda inplace: nn.PReLU()),
        input=_pictures("3x64x64"),
    ),
    "regnet": Family(
        name="RegNetY-200MF",
        what="grouped, squeeze and excitation",
        make=lambda: timm("regnety_002"),
        input=_pictures("3x96x96"),
    ),
    "efficientnet": Family(
        name="EfficientNet-B0",
        what="SiLU",
        make=lambda: timm("efficientnet_b0"),
        input=_pictures("3x96x96"),
        bias=_ABOVE_THE_BEND,
    ),
    "fastvit": Family(name="FastViT-T8", what="GELU", make=lambda: timm("fastvit_t8"), input=_pictures("3x128x128")),
    "vit": Family(
        name="DeiT-Tiny",
        what="no BatchNorm",
        make=lambda: timm("deit_tiny_patch16_224"),
        input=_pictures("3x224x224"),
    ),
    "group_norm": Family(
        name="ResNet-50 with GroupNorm",
        what="GroupNorm",
        # Untrained blocks would end in a normalization that multiplies by 0.
        make=lambda: timm("resnet50_gn", zero_init_last=False),
        input=_pictures("3x96x96"),
    ),
}


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Every family's network as a function of this module, which the command line takes as benchmarks.families:NAME."""
    if name not in FAMILIES:
        raise AttributeError(name)
    return lambda: made(FAMILIES[name])


def made(family: Family) -> nn.Module:
    """A network in eval mode, with statistics to recover."""
    torch.manual_seed(0)
    model = family.make()
    return model.eval() if family.trained else settled(model, family.shapes, bias=family.bias)


@torch.no_grad()
def settled(model: nn.Module, shapes: list[tuple[int, ...]], *, bias: float = 0.0, batches: int = 2) -> nn.Module:
    """Give every BatchNorm an affine part of its own and the statistics that it has on random, blurred images.

    bias: mean of the biases.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(bias, 0.3)
    for _ in range(batches):
        model(*(_blurred(torch.randn(8, *shape)) for shape in shapes))
    return model.eval()


def _blurred(noise: Tensor) -> Tensor:
    """Neighbors alike, as in images; still of deviation 1."""
    blurred = sum(torch.roll(noise, shift, axis) for axis in range(2, noise.dim()) for shift in (-1, 0, 1))
    assert isinstance(blurred, Tensor)
    return blurred / blurred.std()


def run_suite(names: list[str]) -> None:
    """Quantize each through the command line, as a user would; append what the reports say."""
    for name in names:
        record = {"name": name, **measure(name)}
        records.append(SUITE, record)
        print(record, flush=True)


def measure(name: str) -> dict[str, Any]:
    """What became of one network; `error` where there is no file."""
    family = FAMILIES[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = ["quantize", f"{__name__}:{name}", *family.input, *_IMAGES, "--out", str(out), "--quiet"]
        started = time.perf_counter()
        command = [str(Path(sys.executable).with_name("dffg")), *arguments]
        finished = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if not (out / "report.json").is_file():
            return {"error": finished.stderr.strip(), "code": finished.returncode}
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    match = report["simulation_match"]
    return {
        "network": family.name,
        "what": family.what,
        "trained": family.trained,
        "input": shape_text(family.shapes),
        "code": finished.returncode,
        "verified": finished.returncode == 0,
        "integer_kernels": report["kernels"]["integer"],
        "float_kernels": report["kernels"]["float"],
        "equal_share": match[_EQUAL],
        "steps_apart": match[_STEPS_APART],
        "sqnr_db": report["agreement"]["sqnr_db"],
        "in_float": list(dict.fromkeys(map(_kind, report["float_operations"]))),
        "problems": report["problems"],
        "seconds": seconds,
    }


def _kind(operation: str) -> str:
    """`silu_3 (silu)` is a silu."""
    return operation.rpartition("(")[2].removesuffix(")")


def families_table() -> str:
    """What goes: every family with its network, its layers in integers and what stays in float."""
    rows = [
        "| family | network | input | weights | verified | layers in int8 | steps apart | noise, dB | left in float "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in latest(records.read(SUITE), ("name",)):
        if "error" in record:
            continue
        layers = record["integer_kernels"] + record["float_kernels"]
        cells = (
            record["what"],
            record["network"],
            record["input"],
            "trained" if record["trained"] else "random",
            "yes" if record["verified"] else "no",
            f"{record['integer_kernels']} of {layers}",
            record["steps_apart"],
            f"{record['sqnr_db']:.1f}",
            ", ".join(record["in_float"]) or "nothing",
            f"{record['seconds']:.0f}",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)
