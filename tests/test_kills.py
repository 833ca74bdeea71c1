"""Runs that are killed; `python -m tests.kill_suite` kills more of them."""

from __future__ import annotations

import subprocess
import sys


def test_killed_runs_leave_a_whole_result_and_go_on() -> None:
    command = [sys.executable, "-m", "tests.kill_suite", "--kills", "5"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("5 of 5 kills left a whole result")
