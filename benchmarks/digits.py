"""A small network trained here and now on scikit-learn's handwritten digits: real images, real training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.spec import ImageSpec

SPEC = ImageSpec(shape=(1, 8, 8), bounds=(0.0, 16.0))
TRAINING_EXAMPLES = 1200


class DigitsNet(nn.Module):
    """Convolution, depthwise, pointwise, a residual block, global pooling: the parts of a mobile network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.pointwise, self.bn2 = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.conv, self.bn3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu6(self.bn1(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.pointwise(x))), 2)
        x = F.relu(x + self.bn3(self.conv(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, patches, width))
        return x + self.reduce(F.gelu(self.expand(self.norm2(x))))  # type: ignore[no-any-return]


class DigitsTransformer(nn.Module):
    """A vision transformer: sixteen patches of 2x2 pixels, two blocks, the mean of all patches."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x / 8 - 1).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    model: nn.Module
    images: np.ndarray
    labels: np.ndarray
    training_images: np.ndarray


def train_digits(seed: int = 0, make: Callable[[], nn.Module] = DigitsNet) -> Digits:
    """Train on the first 1200 digits for a few seconds; the rest is for scoring."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images[:TRAINING_EXAMPLES]), torch.from_numpy(labels[:TRAINING_EXAMPLES])
    for _ in range(15):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return Digits(model.eval(), images[TRAINING_EXAMPLES:], labels[TRAINING_EXAMPLES:], images[:TRAINING_EXAMPLES])
