"""Kill `dffg quantize` at random moments, and look at what is left: python -m tests.kill_suite --kills 50.

Every run learns at 4 bits over an earlier result, every third one into nothing. After each SIGKILL there must be the
old result or the new one, whole; the same command then ends as if it had never been stopped, and leaves nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import tests.forked  # noqa: F401 - loaded once: every run is forked from here
from dffg.cli.main import main as dffg_main
from dffg.quant import finetune
from dffg.report.result import PAGE_FILE, REPORT_FILE
from dffg.storage.output import file_hash
from tests.networks import randomize

FILES = ("images.npz", "model.onnx", "parameters.npz")
OPTIONS = (
    *(
        "--input",
        "3x8x8",
        "--images",
        "32",
        "--batch-size",
        "4",
        "--steps",
        "4",
        "--bits",
        "W4A4",
        "--force",
        "--quiet",
    ),
    *("--learning-images", "64", "--reconstruction-steps", "40", "--finetune-steps", "60"),
)
Result = dict[str, str]


def tiny() -> nn.Module:
    """The network that is quantized."""
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
    )


def start(out: Path, seed: int, log: Path) -> int:
    """A process that quantizes into `out`; its id."""
    process = os.fork()
    if process:
        return process
    finetune._SAVE_SECONDS = 0.0
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv = ["dffg", "quantize", "tests.kill_suite:tiny", "--out", str(out), "--seed", str(seed), *OPTIONS]
    try:
        dffg_main()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    os._exit(70)


def finish(out: Path, seed: int, log: Path) -> Result:
    """Quantize to the end."""
    _, status = os.waitpid(start(out, seed, log), 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise AssertionError(f"the run ended with {code}:\n{log.read_text()}")
    return result_in(out)


def result_in(out: Path) -> Result:
    """Hashes of the files of a whole result; anything else is an error."""
    if sorted(entry.name for entry in out.iterdir()) != [*FILES, PAGE_FILE, REPORT_FILE]:
        raise AssertionError(f"{out} holds {sorted(entry.name for entry in out.iterdir())}")
    found = {name: file_hash(out / name) for name in (*FILES, PAGE_FILE)}
    if json.loads((out / REPORT_FILE).read_text())["files"] != found:
        raise AssertionError(f"{REPORT_FILE} stands beside files that are not its own")
    del found[PAGE_FILE]  # it says how long the run took
    return found


def kill(out: Path, seed: int, after: float, log: Path) -> bool:
    """Start a run and kill it; whether it was still running."""
    process = start(out, seed, log)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def round_of(place: Path, expected: tuple[Result, Result], seed: int, after: float) -> str:
    """One kill, what it left, and the same run again; says when it hit."""
    out, log = place / "out", place.parent / "log"
    old = result_in(out) if out.exists() else None
    hit = kill(out, seed, after, log)
    left = result_in(out) if out.exists() else None
    if left not in (old, expected[seed]):
        raise AssertionError("there is neither the old result nor the new one")
    states = sorted(path.stem for path in (place / "out.partial").glob("*.pt"))
    if finish(out, seed, log) != expected[seed]:
        raise AssertionError(f"the run that went on from {states} ended otherwise")
    if [entry.name for entry in place.iterdir()] != ["out"]:
        raise AssertionError(f"litter: {sorted(entry.name for entry in place.iterdir())}")
    if not hit:
        return "too late"
    stage = "fine-tuning" if "finetuning" in states else "reconstruction" if "reconstruction" in states else "synthesis"
    return stage if states else ("while writing or after" if left == expected[seed] else "before the first state")


def run_suite(kills: int, seed: int) -> Counter[str]:
    """So many kills that hit; when they did. Raises AssertionError where one did harm."""
    choose = random.Random(seed)
    with _folder() as folder:
        started = time.monotonic()
        expected = (finish(folder / "first", 0, folder / "log"), finish(folder / "second", 1, folder / "log"))
        seconds = (time.monotonic() - started) / 2
        place = folder / "place"
        place.mkdir()
        hits = Counter[str]()
        while hits.total() < kills:
            index = hits.total()
            if index % 3 == 0:
                shutil.rmtree(place / "out", ignore_errors=True)
            after = choose.uniform(0, seconds)
            when = round_of(place, expected, index % 2, after)
            if when == "too late":
                seconds = after
            else:
                hits[when] += 1
    return hits


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """TMPDIR is in it as well, so that nobody else's files are touched."""
    with tempfile.TemporaryDirectory(prefix="dffg-kills-") as folder:
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None
        yield Path(folder).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hits = run_suite(arguments.kills, arguments.seed)
    moments = ", ".join(f"{count} {when}" for when, count in sorted(hits.items()))
    print(
        f"{hits.total()} of {arguments.kills} kills left a whole result, and the run went on to the same end: {moments}"
    )


if __name__ == "__main__":
    main()
