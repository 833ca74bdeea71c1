"""Results on disk: one JSON object per line, with what is needed to make it again."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dffg.machine.environment import describe_environment

# Another folder, for runs whose results are not to be kept.
RESULTS = Path(os.environ.get("DFFG_BENCHMARK_RESULTS") or Path(__file__).parent / "results")


def append(suite: str, record: dict[str, Any]) -> None:
    """Add one result to a suite, with the commit, and the environment where it does not name another."""
    full = {**record, "commit": _commit(), "environment": record.get("environment") or environment()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{suite}.jsonl"
    with path.open("a", encoding="utf-8") as stream:
        stream.truncate(len(_whole(path)))
        stream.write(json.dumps(full) + "\n")


def environment() -> dict[str, Any]:
    """Versions, processor and threads of this process."""
    return asdict(describe_environment(torch.get_num_threads()))


def read(suite: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """All results of a suite, oldest first; folder: by default the one that they are appended to."""
    path = (folder or RESULTS) / f"{suite}.jsonl"
    return list(map(json.loads, _whole(path).splitlines())) if path.exists() else []


def _whole(path: Path) -> bytes:
    """Without half a line at the end, which a process leaves that is killed or finds the disk full."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _commit() -> str:
    finished = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return finished.stdout.strip() or "unknown"
