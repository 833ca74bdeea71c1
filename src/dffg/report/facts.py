"""What a `report.json` says, in words and figures for a page. A `Plain` report is the file as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from dffg.export.verification import SimulationMatch

Plain = dict[str, Any]
NOTHING = "\u2013"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A figure to remember, and below it what it is of."""

    label: str
    value: str
    detail: str


def is_verified(report: Plain) -> bool:
    """Whether the runtime computes what was decided, and that is no nonsense."""
    return _matches(report) and report["agreement"]["broken"] is None


def _matches(report: Plain) -> bool:
    return SimulationMatch(**report["simulation_match"]).holds


def verdict(report: Plain) -> str:
    """The result in one sentence."""
    if not _matches(report):
        return f"Do not use this file: {report['target']} computes something else than what was decided."
    if not is_verified(report):
        return f"Do not use this file: {report['agreement']['broken']}."
    if report["latency_ms"] is None:
        where, gains = f"Written for {report['target']}, verified in ONNX Runtime", _smaller(report)
    else:
        where, gains = f"Verified in {report['target']}", f"{_smaller(report)} and {_faster(report)}"
    return f"{where}: {gains} than the float network; {_kept(report)}."


def _kept(report: Plain) -> str:
    accuracy = report["accuracy"]
    if accuracy is None:
        return "accuracy was not measured"
    drop = accuracy["drop_points"]
    points = f"{abs(drop):.2f} {_plus_minus(accuracy['standard_error'])}points of top-1"
    return f"it {'loses' if drop > 0 else 'gains'} {points}" if drop else "it loses nothing of its top-1"


def _smaller(report: Plain) -> str:
    size = report["size_bytes"]
    return _times(size["float"] / size["quantized"], "smaller", "larger")


def _faster(report: Plain) -> str:
    latency = report["latency_ms"]
    return _times(latency["float"] / latency["quantized"], "faster", "slower")


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more}" if ratio >= 1 else f"{1 / ratio:.1f} times {less}"


def key_facts(report: Plain) -> tuple[Fact, ...]:
    """What people want to know first."""
    size, match = report["size_bytes"], report["simulation_match"]
    kernels, agreement = report["kernels"], report["agreement"]
    return (
        *_accuracy(report["accuracy"], report.get("noise_baseline")),
        Fact(
            label="Agreement",
            **_agreement(agreement),
        ),
        Fact(
            label="Size",
            value=decimal(size["quantized"]),
            detail=f"{decimal(size['float'])} in float; {_smaller(report)}",
        ),
        *_latency(report),
        Fact(
            label="Integer kernels",
            value=f"{kernels['integer']} of {kernels['integer'] + kernels['float']}",
            detail="convolutions and matrix products",
        ),
        Fact(
            label="Simulation match",
            value=f"{match['equal_share']:.3%}",
            detail="of integers equal in the worst layer, at most "
            f"{counted(match['max_abs_difference_in_steps'], 'step')} apart"
            + ("" if match["top1"] is None else f"; {match['top1']:.1%} same top-1"),
        ),
    )


def _agreement(found: Plain) -> dict[str, str]:
    where = f"on {found['count']} held-out synthetic images"
    if found["top1"] is not None:
        detail = f"same top-1 as float {where}, {number(found['sqnr_db'])} dB"
        return {"value": f"{found['top1']:.1%}", "detail": detail}
    each = ", ".join(f"{name} {number(ratio)}" for name, ratio in found["outputs"].items())
    return {"value": f"{number(found['sqnr_db'])} dB", "detail": f"in the worst of the outputs {where}: {each}"}


def _latency(report: Plain) -> tuple[Fact, ...]:
    latency = report["latency_ms"]
    if latency is None:
        return ()
    return (
        Fact(
            label="Latency",
            value=f"{latency['quantized']:.2f} ms",
            detail=f"{latency['float']:.2f} ms in float; {_faster(report)}; batch {latency['batch']}, "
            f"{counted(latency['threads'], 'thread')}",
        ),
    )


def _accuracy(accuracy: Plain | None, noise: Plain | None) -> tuple[Fact, ...]:
    if accuracy is None:
        return ()
    beside = "" if noise is None else f"; drop {noise['drop_points']:+.2f} with ranges from noise"
    drop = f"{accuracy['drop_points']:+.2f} {_plus_minus(accuracy['standard_error'])}points"
    return (
        Fact(
            label="Accuracy",
            value=f"{accuracy['quantized_top1']:.2f} %",
            detail=f"{accuracy['float_top1']:.2f} % in float; drop {drop} on {accuracy['count']} examples{beside}",
        ),
    )


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.2f} "


def images_used(images: Plain) -> str:
    """Which images calibrated, and what they cost: a chain hands out several of the batches that it passes."""
    made = f" from {counted(images['chains'], 'chain')} of {images['passes']} passes" if images["passes"] else ""
    return f"{images['count']} {images['source']}{made}"


def counted(count: int, noun: str) -> str:
    """How many of something."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure that may be missing, as infinite ones are in JSON."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def written(value: Any) -> str:
    """An option as people write it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def worst_first(layers: Sequence[Plain]) -> list[tuple[int, Plain]]:
    """Layers with their place in the order of execution, from 1; those without a figure come last."""

    def noise(entry: tuple[int, Plain]) -> tuple[bool, float]:
        ratio = entry[1]["sqnr_db"]
        return ratio is None, ratio or 0.0

    return sorted(enumerate(layers, start=1), key=noise)


def sqnr_by_layer(report: Plain) -> dict[str, float | None]:
    """Signal to noise ratio in dB, in order of execution."""
    return {layer["name"]: layer["sqnr_db"] for layer in report["layers"]}


def range_by_layer(report: Plain) -> dict[str, tuple[float, float] | None]:
    """Lowest and highest input that its integers represent, in order of execution; None where a report has none."""
    ranges = {layer["name"]: layer.get("input_range") for layer in report["layers"]}
    return {name: (found[0], found[1]) if found else None for name, found in ranges.items()}


def left_in_float(report: Plain) -> dict[str, list[str]]:
    """Operations that are computed in float, by what keeps them from integers, which earlier reports do not say."""
    unsaid = f"no integer kernel in {report['target']} as they are used here"
    return by_reason(report.get("float_reasons") or dict.fromkeys(report["float_operations"], unsaid))


def by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Operations with one reason together."""
    found: dict[str, list[str]] = {}
    for operation, reason in reasons.items():
        found.setdefault(reason, []).append(operation)
    return found
