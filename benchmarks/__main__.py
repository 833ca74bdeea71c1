"""Command line of the benchmarks. They need the weights and data that `benchmarks/networks.py` names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import (
    ablation,
    arena,
    chain_picture,
    command,
    compare,
    diversity,
    effort,
    families,
    growth,
    handover,
    int8,
    latency,
    lowbits,
    mixed,
    overflow,
    patches,
    ranges,
    render,
    scale,
    speed,
    step,
    targets,
)
from benchmarks.networks import NETWORKS
from dffg.cli.options import worker_options
from dffg.machine.device import CPU, device_named
from dffg.machine.distributed import Workers, ray_workers
from dffg.targets import TARGETS

TABLE = "efficientnet_lite0,mobilenet_v2,cifar10_resnet20,kws_dscnn"


def _names(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _titles(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Names that may have commas in them."""
    return [title for title in value.split(";") if title]


networks = click.option("--networks", default=TABLE, callback=_names, show_default=True, help=", ".join(NETWORKS))
device = click.option(
    "--device", default=CPU, callback=lambda c, p, value: device_named(value), help="What makes images and learns."
)
threads = click.option("--threads", default=2, show_default=True)
seeds = click.option("--seeds", default="0,1,2", callback=lambda c, p, value: list(map(int, value.split(","))))


def on_workers(command: Callable[..., None]) -> Callable[..., None]:
    """Cells as tasks of Ray where it is asked for."""

    @worker_options
    @wraps(command)
    def run(*arguments: Any, ray: str | None, workers: int | None, **options: Any) -> None:
        with nullcontext() if ray is None else ray_workers(ray, count=workers) as started:
            command(*arguments, workers=started, **options)

    return run


@click.group()
def main() -> None:
    """Measurements behind the README."""


@main.command("run")
@click.option("--suite", type=click.Choice(list(arena.SUITES)), required=True)
@click.option("--networks", callback=_names, default="", help="Only these; default: those of the suite.")
@click.option("--contestants", callback=_names, default="", help="Only labels that are in this list.")
@click.option("--seeds", default="", help="Only these, like 0,1; default: those of the suite.")
@click.option("--long", is_flag=True, help="Also what takes over half an hour for a seed of a large network.")
@on_workers
def run_arena(
    suite: str, networks: list[str], contestants: list[str], seeds: str, long: bool, workers: Workers | None
) -> None:
    """Every generator of images through the same quantizers; goes on where an earlier run stopped."""
    arena.run_suite(
        arena.narrowed(arena.SUITES[suite], networks, contestants, [int(s) for s in seeds.split(",") if s], long),
        workers=workers,
    )


@main.command("patches")
@seeds
@click.option("--bits", default="W8A8,W4A8", callback=_names, show_default=True)
def run_patches(seeds: list[int], bits: list[str]) -> None:
    """A transformer without BatchNorm, by source of the calibration images; trained here on scikit-learn's digits."""
    patches.run_suite(seeds, bits)


@main.command("int8")
@networks
@seeds
@click.option("--sources", default=",".join(int8.SOURCES), callback=_names, show_default=True)
@click.option("--ranges", default="mse", callback=_names, show_default=True)
@on_workers
def run_int8(
    networks: list[str], seeds: list[int], sources: list[str], ranges: list[str], workers: Workers | None
) -> None:
    """Accuracy of W8A8 in ONNX Runtime, by source of the calibration images."""
    int8.run_suite(networks, seeds, sources, ranges, workers=workers)


@main.command("mixed")
@click.option("--networks", default="mobilenet_v2,efficientnet_lite0", callback=_names, show_default=True)
@seeds
@on_workers
def run_mixed(networks: list[str], seeds: list[int], workers: Workers | None) -> None:
    """Widths of their own for every layer beside one width for all, at equal size, in ONNX Runtime."""
    mixed.run_suite(networks, seeds, workers=workers)


@main.command("lowbits")
@networks
@seeds
@click.option("--sources", default=",".join(lowbits.SOURCES), callback=_names, show_default=True)
@click.option("--bits", default=",".join(lowbits.BITS), callback=_names, show_default=True)
@click.option("--methods", default=";".join(lowbits.METHODS), callback=_titles, show_default=True)
@device
@on_workers
def run_lowbits(
    networks: list[str],
    seeds: list[int],
    sources: list[str],
    bits: list[str],
    methods: list[str],
    device: torch.device,
    workers: Workers | None,
) -> None:
    """Accuracy of fewer bits in ONNX Runtime, by source of the images and by method."""
    lowbits.run_suite(networks, seeds, sources, bits, methods, device, workers=workers)


def _budgets(context: click.Context, parameter: click.Parameter, value: str) -> list[lowbits.Budget]:
    parts = [list(map(int, part.split("x"))) for part in value.split(",")]
    return [lowbits.Budget(images=images, steps=steps, tuning_steps=0) for images, steps in parts]


@main.command("effort")
@click.option("--networks", default="mobilenet_v2,efficientnet_lite0", callback=_names, show_default=True)
@seeds
@click.option("--sources", default=",".join(effort.SOURCES), callback=_names, show_default=True)
@click.option(
    "--budgets", default=effort.BUDGETS, callback=_budgets, show_default=True, help="Images x steps a block, like 64x60"
)
@device
def run_effort(
    networks: list[str], seeds: list[int], sources: list[str], budgets: list[lowbits.Budget], device: torch.device
) -> None:
    """Learned four bits by the images and the steps that they get, against time."""
    effort.run_suite(networks, seeds, sources, budgets, device)


@main.command("growth")
@click.option("--networks", default="cifar10_resnet20", callback=_names, show_default=True)
@click.option("--counts", default="64,256,1024,4096", callback=lambda c, p, value: list(map(int, value.split(","))))
@threads
def run_growth(networks: list[str], counts: list[int], threads: int) -> None:
    """Seconds and peak memory of synthesis by the number of images."""
    growth.run_suite(networks, counts, threads)


@main.command("step")
@click.option("--networks", default="efficientnet_lite0,mobilenet_v2", callback=_names, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--size", type=int, help="Height and width of the images; default: the network's own.")
@threads
@click.option("--rounds", default=7, show_default=True)
@click.option("--parts", default=";".join(step.PARTS), callback=_titles, show_default=True)
@device
def run_step(
    networks: list[str],
    batch: int,
    size: int | None,
    threads: int,
    rounds: int,
    parts: list[str],
    device: torch.device,
) -> None:
    """Seconds of one pass of synthesis beside those of its convolutions alone."""
    step.run_suite(networks, batch, size, threads, rounds, parts, device)


@main.command("command")
@click.option("--networks", default="efficientnet_lite0", callback=_names, help=", ".join(command.NETWORKS))
@threads
@click.option("--rounds", default=5, show_default=True)
def run_command(networks: list[str], threads: int, rounds: int) -> None:
    """Seconds and peak memory of the whole of `dffg quantize`, stage by stage, in processes of their own."""
    command.run_suite(networks, threads, rounds)


@main.command("ranges")
@click.option("--networks", default="efficientnet_lite0", callback=_names, show_default=True)
@threads
@click.option("--rounds", default=5, show_default=True)
def run_ranges(networks: list[str], threads: int, rounds: int) -> None:
    """Seconds to choose ranges beside those of the images that they are chosen from."""
    ranges.run_suite(networks, threads, rounds)


@main.command("targets")
@click.option("--networks", default="efficientnet_lite0,mobilenet_v2", callback=_names, show_default=True)
@click.option("--targets", "names", default=",".join(TARGETS), callback=_names, show_default=True)
@click.option("--sources", default=",".join(targets.SOURCES), callback=_names, show_default=True)
def run_targets(networks: list[str], names: list[str], sources: list[str]) -> None:
    """Every runtime that can be written for, on the same images."""
    targets.run_suite(networks, sources, names)


@main.command("families")
@click.option("--names", default=",".join(families.FAMILIES), callback=_names, show_default=True)
def run_families(names: list[str]) -> None:
    """Every family of networks through the command line: verified or not, and what stays in float."""
    families.run_suite(names)


@main.command("ablation")
@networks
@seeds
@click.option(
    "--changes", default=";".join(ablation.CHANGES), callback=_titles, help="Separated by semicolons; default: all."
)
@on_workers
def run_ablation(networks: list[str], seeds: list[int], changes: list[str], workers: Workers | None) -> None:
    """One factor of the iteration at a time, judged on unlabelled calibration images."""
    ablation.run_suite(networks, seeds, changes, workers=workers)


@main.command("diversity")
@networks
@seeds
@click.option("--settings", default=",".join(diversity.SETTINGS), callback=_names, help="Default: all of them.")
@on_workers
def run_diversity(networks: list[str], seeds: list[int], settings: list[str], workers: Workers | None) -> None:
    """How different the images are, and whether it matters."""
    diversity.run_suite(networks, seeds, settings, workers=workers)


@main.command("latency")
@networks
@click.option("--rounds", default=7, show_default=True)
@click.option("--batch", default=1, show_default=True)
def run_latency(networks: list[str], rounds: int, batch: int) -> None:
    """Speed beside the float file and ONNX Runtime's own quantizer."""
    latency.run_suite(networks, rounds, batch)


@main.command("overflow")
@networks
@seeds
def run_overflow(networks: list[str], seeds: list[int]) -> None:
    """Accuracy of W8A8 where the processor adds products in 16 bits."""
    overflow.run_suite(networks, seeds)


@main.command("handover")
@click.option("--networks", default="mobilenet_v2,efficientnet_lite0", callback=_names, show_default=True)
@seeds
@click.option("--tools", default=";".join(handover.TOOLS), callback=_titles, show_default=True)
def run_handover(networks: list[str], seeds: list[int], tools: list[str]) -> None:
    """Accuracy of other quantizers' int8 files, calibrated with our images and with real ones."""
    handover.run_suite(networks, seeds, tools)


@main.command("speed")
@networks
@click.option("--rounds", default=3, show_default=True)
def run_speed(networks: list[str], rounds: int) -> None:
    """Seconds to make images: ours, ZeroQ and Sony MCT (python -m benchmarks.peers.mct setup)."""
    speed.run_suite(networks, rounds)


@main.command("scale")
@click.option("--network", default="efficientnet_lite0", show_default=True)
@click.option("--chains", default=4, show_default=True)
@click.option("--tasks", default=20, show_default=True, help="Tasks of one second for every worker.")
def run_scale(network: str, chains: int, tasks: int) -> None:
    """Overhead and speed-up of Ray on this machine, and many workers simulated from them."""
    scale.run_suite(network, chains, tasks)


@main.command("chain")
def run_chain_picture() -> None:
    """Draw docs/figures/chain.jpg: images of one chain from noise to the last step."""
    chain_picture.draw(render.ROOT / render.FOLDER / "chain.jpg")


@main.command("compare")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def run_compare(folder: Path) -> None:
    """Rows that were measured again into FOLDER (DFFG_BENCHMARK_RESULTS) beside those that are kept."""
    click.echo(compare.summary(compare.measured_again(folder)))


@main.command("render")
@click.option("--check", is_flag=True, help="Fail where the README is not what the results say.")
def run_render(check: bool) -> None:
    """Write the tables of the README and docs from the stored results."""
    raise SystemExit(render.main(check=check))


if __name__ == "__main__":
    main()
