"""Several results side by side: what they are, and where their options differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dffg.report.facts import Plain, is_verified

_CONFIGURATIONS = ("synthesis", "quantization", "learning")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A result in a row of figures. drop_points: of top-1; it and latency_ms are None where they were not measured."""

    name: str
    model: str
    scheme: str
    verified: bool
    size_bytes: int
    latency_ms: float | None
    integer_kernels: int
    float_kernels: int
    drop_points: float | None
    standard_error: float | None
    agreement: float | None
    seconds: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An option that is not the same in all runs, with its value in each."""

    option: str
    values: tuple[Any, ...]


def run_of(name: str, report: Plain) -> Run:
    """The figures of one report."""
    accuracy = report["accuracy"] or {}
    return Run(
        name=name,
        model=report["model"],
        scheme=report["scheme"],
        verified=is_verified(report),
        size_bytes=report["size_bytes"]["quantized"],
        latency_ms=(report["latency_ms"] or {}).get("quantized"),
        integer_kernels=report["kernels"]["integer"],
        float_kernels=report["kernels"]["float"],
        drop_points=accuracy.get("drop_points"),
        standard_error=accuracy.get("standard_error"),
        agreement=report["agreement"]["top1"],
        seconds=report["seconds"]["total"],
        seed=report["seed"],
    )


def differences(reports: Sequence[Plain]) -> tuple[Difference, ...]:
    """Options of synthesis, quantization and learning, the network and the versions, where runs differ."""
    described = [_options(report) for report in reports]
    names = dict.fromkeys(name for options in described for name in options)
    rows = (Difference(option=name, values=tuple(options.get(name) for options in described)) for name in names)
    return tuple(row for row in rows if any(value != row.values[0] for value in row.values))


def _options(report: Plain) -> dict[str, Any]:
    options = {"model": report["model"], "dffg": report["version"], "images.source": report["images"]["source"]}
    for section in _CONFIGURATIONS:
        options |= {f"{section}.{name}": value for name, value in (report[section] or {}).items()}
    return options | {f"environment.{name}": value for name, value in report["environment"].items()}
