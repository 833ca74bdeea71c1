"""Rows that were measured again, in a folder of their own, beside those that are kept: has anything got worse?

    DFFG_BENCHMARK_RESULTS=/tmp/again python -m benchmarks int8 --seeds 0
    python -m benchmarks compare /tmp/again

With the same processor and versions a seed gives the same answers to the last digit, and what differs is a change of
behaviour. Seconds and sizes are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.rows import Record

# What says of a row which cell it measured; each suite has some of these.
CELL = (
    *("network", "name", "generator", "label", "source", "target", "tool", "file", "kind", "at", "setting", "change"),
    *("bits", "method", "ranges", "seed", "images", "steps", "config", "device"),
)
ANSWERS = ("drop_points", "kl_to_float", "kl", "verified", "integer_kernels", "float_kernels")


@dataclass(frozen=True, kw_only=True)
class Again:
    """A row that was measured again. before, now: answers by their names; before: None where no such row is kept."""

    cell: str
    before: dict[str, Any] | None
    now: dict[str, Any]

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.cell}: not measured before"
        changed = [name for name, value in self.now.items() if self.before.get(name) != value]
        return f"{self.cell}: " + ", ".join(f"{name} {self.before.get(name)} -> {self.now[name]}" for name in changed)


def measured_again(folder: Path) -> list[Again]:
    """Every row of every suite in a folder, beside the newest of its cell in the kept results."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        kept = {_cell(row): row for row in records.read(path.stem)}
        for row in records.read(path.stem, folder):
            before = kept.get(_cell(row))
            found.append(
                Again(
                    cell=f"{path.stem}: {_shown(row)}",
                    before=None if before is None else dict(_answers(before)),
                    now=dict(_answers(row)),
                )
            )
    return found


def summary(found: list[Again]) -> str:
    """How many rows are as they were, and a line for each that is not."""
    other = [again for again in found if again.before != again.now]
    return "\n".join(
        [*map(str, other), f"{len(found) - len(other)} of {len(found)} rows have the same answers to the last digit"]
    )


def _cell(row: Record) -> str:
    return repr([row.get(name) for name in CELL])


def _shown(row: Record) -> str:
    return " ".join(str(row[name]) for name in CELL if name in row and name != "config")


def _answers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Of a row, however deep: `scores.W8A8 mse.drop_points`."""
    for name, inner in value.items():
        at = f"{path}.{name}" if path else name
        if isinstance(inner, dict):
            yield from _answers(inner, at)
        elif at.split(".")[-1] in ANSWERS or "kl" in at.split("."):
            yield at, inner
