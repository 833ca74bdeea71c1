"""The result as a short table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from dffg.evaluation.metrics import Accuracy
from dffg.quant.allocation import Allocation
from dffg.quant.mixed import MixedPrecision
from dffg.report.facts import by_reason, counted, images_used
from dffg.report.inspection import Inspection
from dffg.report.result import Agreement, Latency, Layer, Result


def render(result: Result) -> RenderableType:
    """What people want to know first, and then every problem and note in words."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(result):
        table.add_row(label, Text(value))
    problems = [Text(f"! {problem}", style="bold yellow") for problem in result.problems]
    notes = [Text(f"  {note}", style="dim") for note in result.notes]
    return Group(table, *problems, *notes)


def _describe_latency(latency: Latency) -> str:
    return (
        f"{latency.float:.2f} ms -> {latency.quantized:.2f} ms ({latency.speedup:.1f}x), batch {latency.batch}, "
        f"{latency.threads} threads"
    )


def _same_top1(share: float | None) -> str:
    return "" if share is None else f"; {share:.1%} same top-1"


def _describe_agreement(found: Agreement) -> str:
    if found.outputs is None:
        return f"{found.top1:.1%} top-1, {found.sqnr_db:.1f} dB on {found.count}"
    return ", ".join(f"{name} {ratio:.1f} dB" for name, ratio in found.outputs.items()) + f" on {found.count}"


def describe_accuracy(accuracy: Accuracy) -> str:
    """Accuracy with its drop, standard error and sample size in one line."""
    return (
        f"{accuracy.quantized_top1:.2f} % top-1 against {accuracy.float_top1:.2f} % in float: drop "
        f"{accuracy.drop_points:+.2f} +- {accuracy.standard_error:.2f} points on {accuracy.count} examples"
    )


def _rows(result: Result) -> list[tuple[str, str]]:
    size, latency, match = result.size_bytes, result.latency_ms, result.simulation_match
    kernels = result.kernels
    rows = [
        ("network", f"{result.model}, {result.scheme} for {result.target}"),
        ("images", images_used(asdict(result.images))),
        ("size", f"{decimal(size['float'])} -> {decimal(size['quantized'])}"),
        ("latency", "not measured here" if latency is None else _describe_latency(latency)),
        ("kernels", f"{kernels.integer} of {kernels.integer + kernels.float} convolutions and matrix products in int8"),
        (
            "simulation",
            f"{match.equal_share:.3%} of integers equal in the worst layer, at most "
            f"{counted(match.max_abs_difference_in_steps, 'step')} apart" + _same_top1(match.top1),
        ),
        ("agreement", _describe_agreement(result.agreement)),
        ("", result.agreement.meaning),
    ]
    if result.accuracy is not None:
        rows.append(("accuracy", describe_accuracy(result.accuracy)))
    if result.noise_baseline is not None:
        rows.append(("", f"drop {result.noise_baseline.drop_points:+.2f} points with ranges from noise"))
    weakest = sorted(result.layers, key=lambda layer: layer.sqnr_db)[:3]
    if result.mixed is not None:
        rows += _mixed_rows(result.mixed, result.layers)
    rows.append(("noisiest layers", ", ".join(f"{layer.name} {layer.sqnr_db:.1f} dB" for layer in weakest)))
    seconds = result.seconds
    rows.append(
        (
            "time",
            f"{seconds.total:.1f} s: synthesis {seconds.synthesis:.1f}, calibration {seconds.calibration:.1f}, "
            f"learning {seconds.learning:.1f}, held-out images {seconds.held_out_images:.1f}, "
            f"export {seconds.export:.1f}, verification {seconds.verify:.1f}",
        )
    )
    if result.peak_memory_bytes:
        rows.append(("peak memory", decimal(result.peak_memory_bytes)))
    rows.append(("written to", result.path))
    return rows


def _mixed_rows(mixed: MixedPrecision, layers: tuple[Layer, ...]) -> list[tuple[str, str]]:
    """Which widths there are, and what other budgets would have cost and harmed."""

    def describe(point: Allocation) -> str:
        return f"{replace(mixed.budget, amount=point.cost)}, sensitivity {point.sensitivity:.2g}"

    frontier = [f"{describe(point)}: {describe_widths(point.widths.weights.values())}" for point in mixed.frontier]
    return [
        ("widths", f"weights of {describe_widths(layer.weight_bits for layer in layers)}"),
        ("", f"inputs of {describe_widths(layer.activation_bits for layer in layers)}"),
        ("chosen", describe(mixed.chosen)),
        *zip(["frontier", *[""] * (len(frontier) - 1)], frontier),
    ]


def describe_widths(bits: Iterable[int]) -> str:
    """How many layers have which width."""
    return ", ".join(f"{width} bits in {count}" for width, count in sorted(Counter(bits).items()))


def render_inspection(found: Inspection) -> RenderableType:
    """Summary, then one line per BatchNorm."""
    spec = found.input
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("network", f"{found.model}, {found.parameters / 1e6:.2f} M parameters")
    for index, part in enumerate(spec.parts):
        described = f"{part.written_shape}, mean {part.mean}, std {part.std}, bounds {part.bounds} ({part.source})"
        table.add_row("" if index else "input", described)
    table.add_row("quantized", f"{found.quantized_layers} layers, {found.quantized_tensors} activations")
    left = [f"{reason}: {', '.join(operations)}" for reason, operations in by_reason(found.float_reasons).items()]
    table.add_row("left in float", Text("\n".join(left) or "nothing"))
    table.add_row("synthesis", f"about {found.estimated_seconds:.0f} s ({found.seconds_per_pass:.2f} s a pass)")
    norms = Table("BatchNorm", "channels", "without variance", "folds", box=None, header_style="bold")
    for norm in found.batch_norms:
        norms.add_row(norm.name, str(norm.channels), str(norm.zero_variance), "yes" if norm.folds else "no")
    return Group(table, Text(), norms, *(Text(f"  {note}", style="dim") for note in found.notes))


def render_batch(found: dict[str, Any], out: Path) -> RenderableType:
    """The results of many jobs in a table, and the failures below."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "bits", "kB", "drop", "agreement", "ms", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("name", "bits", "") else "right", overflow="fold")
    for run in found["runs"]:
        table.add_row(
            Text(run["name"]),
            run["scheme"],
            f"{run['size_bytes'] / 1e3:.0f}",
            "-" if run["drop_points"] is None else f"{run['drop_points']:.2f}",
            "-" if run["agreement"] is None else f"{run['agreement']:.1%}",
            "-" if run["latency_ms"] is None else f"{run['latency_ms']:.2f}",
            f"{run['seconds']:.1f}",
            "" if run["verified"] else "verification failed",
        )
    failures = [Text(f"failed: {failure['name']}: {failure['error']}") for failure in found["failures"]]
    return Group(table, *failures, Text(f"written to {out}"))
