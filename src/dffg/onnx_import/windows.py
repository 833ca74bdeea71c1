"""Where the windows of a convolution or a pooling lie: ONNX pads both ends of an axis on their own, torch alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Per spatial axis: size of the window, distance of two, distance of its elements, padding at both ends."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def is_symmetric(self) -> bool:
        """Whether torch can express the padding."""
        return self.begin == self.end

    @property
    def fits_torch(self) -> bool:
        """Whether torch's pooling takes the padding at the begin: it must not be above half of the window."""
        return all(2 * padding <= kernel for padding, kernel in zip(self.begin, self.kernel))

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """The padding written out."""
        sides = [side for pair in zip(reversed(self.begin), reversed(self.end)) for side in pair]
        return F.pad(x, sides, value=value) if any(sides) else x

    def counts(self, x: Tensor, *, ceil_mode: bool = False) -> list[int]:
        """Windows along every axis. Rounded up, the last one must begin before the padding at the end."""
        counts = []
        for size, kernel, stride, dilation, begin, end in zip(
            x.shape[2:], self.kernel, self.strides, self.dilations, self.begin, self.end
        ):
            room = size + begin + end - dilation * (kernel - 1) - 1
            count = (-(-room // stride) if ceil_mode else room // stride) + 1
            counts.append(count - (ceil_mode and (count - 1) * stride >= size + begin))
        return counts

    def with_room_for(self, counts: list[int], x: Tensor) -> Windows:
        """Padding at the end that fits so many windows and no more; rounded up, the last one may reach beyond it."""
        end = [
            (count - 1) * stride + dilation * (kernel - 1) + 1 - size - begin
            for count, size, kernel, stride, dilation, begin in zip(
                counts, x.shape[2:], self.kernel, self.strides, self.dilations, self.begin
            )
        ]
        return replace(self, end=end)

    def beyond(self, other: Windows) -> Windows:
        """Only the padding that this has more than the other at the end."""
        nothing = [0] * len(self.begin)
        return replace(self, begin=nothing, end=[mine - its for mine, its in zip(self.end, other.end)])


def windows(
    x: Tensor,
    kernel: list[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
) -> Windows:
    """Read the attributes of a convolution or a pooling."""
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    pads = pads or [0] * (2 * rank)
    begin, end = pads[:rank], pads[rank:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations)
        ]
        begin, end = halves(totals, auto_pad)
    return Windows(kernel=kernel, strides=strides, dilations=dilations, begin=begin, end=end)


def halves(totals: list[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Padding of every axis at its begin and its end, the larger half at the end with SAME_UPPER."""
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def of_rank(name: str, rank: int) -> Any:
    """torch's function for 1 to 3 spatial axes."""
    if not 1 <= rank <= 3:
        raise NotImplementedError(f"{rank} spatial axes are not supported")
    return getattr(F if hasattr(F, f"{name}{rank}d") else torch, f"{name}{rank}d")
