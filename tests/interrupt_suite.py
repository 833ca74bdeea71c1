"""Press Ctrl-C in every stage of `dffg quantize`, and see how soon it ends: python -m tests.interrupt_suite.

Seconds are from the signal to the end of the process, on a network of ImageNet's size that learns at 4 bits. They are
printed and nowhere asserted: a machine that is busy with other things takes longer.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# When in a stage, seconds after it begins.
STAGES = {"capture": 0.5, "synthesis": 2.0, "learning": 2.0, "export": 1.0, "verify": 1.0}
OPTIONS = ("--images", "16", "--steps", "8", "--bits", "W4A4")
# What comes after learning is the same whether anything was learned or not.
LEARNING = ("--learning-images", "32", "--reconstruction-steps", "200", "--finetune-steps", "50")
NOT_LEARNING = ("--recipe", "fast")
# Interrupts are ignored in what a shell runs in the background.
_TELLING = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import dffg.report.progress
from dffg.cli.main import main

begin = dffg.report.progress.ProgressView.stage


def telling(view, name):
    begin(view, name)
    os.write(2, f"{name}\\n".encode())


dffg.report.progress.ProgressView.stage = telling
main()
"""


@dataclass(frozen=True)
class Interrupted:
    """How a command ended, what it said after the signal, and how long after that it ended."""

    code: int
    said: str
    seconds: float


def interrupt(stage: str, after: float, arguments: Sequence[str]) -> Interrupted:
    """Run a command of `dffg` until so many seconds after this stage begins, and interrupt it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TELLING, *arguments, "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    with process:
        assert process.stderr is not None
        if f"{stage}\n" not in iter(process.stderr.readline, ""):
            raise AssertionError(f"the command ended with {process.wait()} before {stage}")
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        said = process.stderr.read()
        return Interrupted(process.wait(), said, time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--model", default="demo:efficientnet_lite0")
    arguments = parser.parse_args()
    for stage in arguments.stages:
        with tempfile.TemporaryDirectory(prefix="dffg-interrupt-") as folder:
            options = (*OPTIONS, *(LEARNING if stage == "learning" else NOT_LEARNING))
            ended = interrupt(stage, STAGES[stage], ["quantize", arguments.model, "--out", f"{folder}/out", *options])
            left = sorted(path.name for path in Path(folder).iterdir())
        print(f"{stage}: ended with {ended.code} after {ended.seconds:.2f} s, left {left or 'nothing'}", flush=True)


if __name__ == "__main__":
    main()
