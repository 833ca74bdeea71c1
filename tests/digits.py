"""A small network trained here and now on scikit-learn's handwritten digits: real images, real training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from dffg.images import ImageSpec

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
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Digits:
    model: DigitsNet
    images: np.ndarray
    labels: np.ndarray
    training_images: np.ndarray


def train_digits(seed: int = 0) -> Digits:
    """Train on the first 1200 digits for a few seconds; the rest is for scoring."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    torch.manual_seed(seed)
    model = DigitsNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images[:TRAINING_EXAMPLES]), torch.from_numpy(labels[:TRAINING_EXAMPLES])
    for _ in range(15):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return Digits(model.eval(), images[TRAINING_EXAMPLES:], labels[TRAINING_EXAMPLES:], images[:TRAINING_EXAMPLES])
