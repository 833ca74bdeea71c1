"""What every runtime offers, whatever it is; each is one object, made in a module of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import fx

from dffg.quant.quantized import Quantized
from dffg.spec import Array, ImageSpec

Forward = Callable[[Array], Array]
Watch = Callable[[Array], tuple[Array, dict[str, NDArray[Any]]]]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Convolutions and matrix products that the runtime executes, by kind; `other` counts the rest."""

    integer: int
    float: int
    other: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded file. run: its answer to one batch, all outputs laid end to end; outputs: how many there are."""

    run: Forward
    outputs: int


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How the files of one target are written, run and looked at.

    suffixes: of the files that are loaded, which differ in nothing else; the first is the one to name. open: load a
    file, to run on so many threads (0: the runtime's choice). watch: a file as a function of one batch that also gives
    the integers of every quantized tensor by its name. read_spec: the input description stored in a file. requires:
    packages that must be installed, which the extra of the target's name brings. is_timed: whether speed here says
    anything. notes: what a user must know of such files.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Quantized, ImageSpec, Path], None]
    write_float: Callable[[fx.GraphModule, ImageSpec, Path], None]
    open: Callable[[Path, int], Opened]
    watch: Callable[[Quantized, Path], Watch]
    count_kernels: Callable[[Path], Kernels]
    read_spec: Callable[[Path], ImageSpec | None]
    requires: tuple[str, ...] = ()
    is_timed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the file to load."""
        return f"model{self.suffixes[0]}"

    def run(self, path: Path, batches: Iterable[Array]) -> Iterator[Array]:
        """Outputs of a file, batch by batch."""
        return map(self.open(path, 0).run, batches)

    def size_bytes(self, path: Path) -> int:
        """Bytes of everything that is loaded with a file."""
        return sum(path.with_suffix(suffix).stat().st_size for suffix in self.suffixes)


def latency_ms(runs: dict[str, Forward], batch: Array, *, repeats: int = 15) -> dict[str, float]:
    """Median milliseconds per run of each, measured in turns so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats + 2):
        for label, run in runs.items():
            started = time.perf_counter()
            run(batch)
            times[label].append((time.perf_counter() - started) * 1e3)
    return {label: statistics.median(measured[2:]) for label, measured in times.items()}
