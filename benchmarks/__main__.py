"""Command line of the benchmarks. They need the weights and data that `benchmarks/networks.py` names."""

from __future__ import annotations

import click

from benchmarks import defaults, int8, latency, render
from benchmarks.networks import NETWORKS

TABLE = "efficientnet_lite0,mobilenet_v2,cifar10_resnet20,kws_dscnn"


def _names(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    return [name for name in value.split(",") if name]


networks = click.option("--networks", default=TABLE, callback=_names, show_default=True, help=", ".join(NETWORKS))
seeds = click.option("--seeds", default="0,1,2", callback=lambda c, p, value: list(map(int, value.split(","))))


@click.group()
def main() -> None:
    """Measurements behind the README."""


@main.command("int8")
@networks
@seeds
@click.option("--sources", default=",".join(int8.SOURCES), callback=_names, show_default=True)
@click.option("--ranges", default="mse", callback=_names, show_default=True)
def run_int8(networks: list[str], seeds: list[int], sources: list[str], ranges: list[str]) -> None:
    """Accuracy of W8A8 in ONNX Runtime, by source of the calibration images."""
    int8.run_suite(networks, seeds, sources, ranges)


@main.command("defaults")
@networks
@seeds
@click.option("--changes", default=",".join(defaults.CHANGES), callback=_names, show_default=True)
def run_defaults(networks: list[str], seeds: list[int], changes: list[str]) -> None:
    """Settings one at a time, judged on unlabelled calibration images."""
    defaults.run(networks, seeds, changes)


@main.command("latency")
@networks
@click.option("--rounds", default=7, show_default=True)
@click.option("--batch", default=1, show_default=True)
def run_latency(networks: list[str], rounds: int, batch: int) -> None:
    """Speed beside the float file and ONNX Runtime's own quantizer."""
    latency.run_suite(networks, rounds, batch)


@main.command("render")
@click.option("--check", is_flag=True, help="Fail where the README is not what the results say.")
def run_render(check: bool) -> None:
    """Write the tables of the README and docs from the stored results."""
    raise SystemExit(render.main(check=check))


main()
