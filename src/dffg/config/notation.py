"""What is written of devices, bit widths, sizes and budgets: auto, W4A8, 800MB, size=0.5x."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dffg.config.options import require
from dffg.errors import InputError

# The device, where none is named: CUDA where there is one.
AUTO = "auto"
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
# No digit can be read in two ways, which for a long row of them would take for ever, and no amount is infinite.
_AMOUNT = r"(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})"


def require_width(bits: int, of: str = "") -> None:
    """Raise InputError for a width that no file of ours has."""
    require(2 <= bits <= 8, f"{of}{bits} bits are not supported; choose a width from 2 to 8.")


@dataclass(frozen=True)
class Scheme:
    """Bit widths, written W<weights>A<activations>, for example W8A8."""

    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            require_width(bits, f"bits W{self.weight_bits}A{self.activation_bits}: ")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read `W8A8`, in either case."""
        match = re.fullmatch(r"[wW](\d{1,4})[aA](\d{1,4})", text.strip())
        if match is None:
            raise InputError(f"cannot read bit widths {text!r}; write them like W8A8 (weights 8, activations 8).")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"


def parse_bytes(text: str) -> int:
    """A size like 800MB or 1.5GB, in bytes."""
    match = re.fullmatch(_AMOUNT + "([kMG]?B)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _BYTES[match[2].upper()]) if match else 0
    require(size > 0, f"cannot read the size {text!r}; write it like 800MB or 1.5GB.")
    return size


@dataclass(frozen=True)
class Budget:
    """What a network of mixed widths may cost, written size=0.5x, size=2MB, bops=0.25x or bits=4.

    kind: size, of the stored weights; bops, bit operations, which are multiplications times the bits of weight and
    activation; bits, of a weight on average. amount: bytes, bits, or, where relative, a share of W8A8.
    """

    kind: str
    amount: float
    relative: bool

    def __str__(self) -> str:
        """As it is read, with four digits behind the point."""
        number = f"{round(self.amount, 4):g}"
        if self.relative:
            return f"{self.kind}={number}x"
        return f"size={self.amount:.0f}B" if self.kind == "size" else f"bits={number}"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read one of the notations above."""
        kind, _, amount = text.strip().partition("=")
        require(
            kind != "latency",
            "a latency budget cannot be met by bit widths: ONNX Runtime computes all widths from 2 to 8 bits with the "
            "same int8 kernels. Give size=, bops= or bits=.",
        )
        match = re.fullmatch(_AMOUNT + "(x|[kMG]?B)?", amount, re.IGNORECASE)
        number, unit = (float(match[1]), (match[2] or "").upper()) if match else (0.0, "")
        if kind in ("size", "bops") and unit == "X":
            require(0 < number <= 1, f"the budget {text!r} is not above 0 and at most 1x, which is W8A8.")
            return cls(kind, number, relative=True)
        if kind == "size" and unit in _BYTES:
            require(number > 0, f"the budget {text!r} is nothing; give a size above 0.")
            return cls(kind, number * _BYTES[unit], relative=False)
        if kind == "bits" and match and not unit:
            require(2 <= number <= 8, f"the budget {text!r} is not from 2 to 8 bits.")
            return cls(kind, number, relative=False)
        raise InputError(f"cannot read the budget {text!r}; write it like size=0.5x, size=2MB, bops=0.25x or bits=4.")
