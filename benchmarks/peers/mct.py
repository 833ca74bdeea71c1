"""Sony's Model Compression Toolkit (MCT) beside us: make its environment, run `mct_worker.py` in it, read the images.

MCT's data generation is compared with as published, not as we would write it again. It has an environment of its own
because its dependencies are not ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from dffg.errors import DffgError
from dffg.images import read_npz

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("mct-requirements.txt")
UNSUPPORTED = 3  # the worker's exit code


class PeerUnavailable(DffgError):  # noqa: N818 - a state, not a mistake
    """MCT cannot be run here, or not on this network; the message is the reason."""


def folder() -> Path:
    """Where the environment lies: DFFG_PEERS, or `.peers/mct` in the checkout."""
    given = os.environ.get("DFFG_PEERS")
    return Path(given) if given else REPOSITORY / ".peers" / "mct"


def environment() -> Path | None:
    """Interpreter of the finished environment, or None."""
    return _interpreter() if _installed() else None


def make_environment() -> Path:
    """Make the environment unless it is already what the requirements ask for; returns its interpreter."""
    if not _installed():
        _call([sys.executable, "-m", "venv", str(folder())])
        pip = [str(_interpreter()), "-m", "pip", "install", "--quiet"]
        _call([*pip, "--upgrade", "pip"])
        _call([*pip, "--requirement", str(REQUIREMENTS)])
        # Written last, so that an interrupted installation is taken up again.
        _marker().write_text(REQUIREMENTS.read_text(encoding="utf-8"), encoding="utf-8")
    return _interpreter()


def generate(
    network: str, count: int, seed: int, iterations: int, out: Path, *, batch: int = 32, threads: int = 2
) -> dict[str, Any]:
    """Run MCT on a benchmark network; returns what the worker measured, and the float32 network `inputs`."""
    interpreter = environment()
    if interpreter is None:
        raise PeerUnavailable(f"MCT is not installed at {folder()}; run: python -m benchmarks.peers.mct setup")
    # savez appends the ending where it is missing, and the file would not be found again.
    out = out.absolute().with_suffix(".npz")
    options = {"images": count, "seed": seed, "iterations": iterations, "batch": batch, "threads": threads, "out": out}
    command = [str(interpreter), "-m", "benchmarks.peers.mct_worker", "--network", network]
    command += [f"--{name}={value}" for name, value in options.items()]
    finished = subprocess.run(
        command, cwd=REPOSITORY, env=_worker_environment(), capture_output=True, text=True, check=False
    )
    if finished.returncode == UNSUPPORTED:
        raise PeerUnavailable(_last_line(finished.stderr))
    if finished.returncode:
        raise RuntimeError(f"MCT failed on {network}:\n{finished.stderr[-2000:]}")
    return read(out)


def read(path: Path) -> dict[str, Any]:
    """A file of the worker: its metadata and the array `inputs`."""
    arrays = read_npz(path)
    return {**json.loads(str(arrays["metadata"])), "inputs": arrays["inputs"]}


def _interpreter() -> Path:
    return folder() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _marker() -> Path:
    return folder() / "installed-requirements.txt"


def _installed() -> bool:
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    return _interpreter().exists() and _marker().exists() and _marker().read_text(encoding="utf-8") == wanted


def _worker_environment() -> dict[str, str]:
    """The checkout's dffg is imported from its sources: installing it would bring dependencies MCT does not want."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}


def _call(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = _last_line(finished.stderr or finished.stdout)
        raise PeerUnavailable(f"the environment of MCT cannot be made at {folder()}: {reason}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was given"])[-1]


@click.group()
def main() -> None:
    """Images from Sony's Model Compression Toolkit."""


@main.command("setup")
def run_setup() -> None:
    """Make the environment; a few minutes the first time."""
    print(make_environment())


@main.command("generate")
@click.option("--network", required=True)
@click.option("--images", default=64, show_default=True)
@click.option("--iterations", default=500, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def run_generate(network: str, images: int, iterations: int, batch: int, seed: int, threads: int, out: Path) -> None:
    """Make images and print what the run took."""
    try:
        result = generate(network, images, seed, iterations, out, batch=batch, threads=threads)
    except PeerUnavailable as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    inputs = result.pop("inputs")
    print(json.dumps({**result, "shape": inputs.shape}, indent=1))


if __name__ == "__main__":
    main()
