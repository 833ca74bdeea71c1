"""The progress line, as a terminal shows it."""

from __future__ import annotations

import io

from rich.console import Console

from dffg.report.progress import ProgressView


def test_a_counted_stage_shows_its_share_and_the_time_left() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120, legacy_windows=False)
    with ProgressView(console) as view:
        view.stage("evaluation")
        view.update_count(3, 4)
        (task,) = view._bar.tasks
        assert (task.completed, task.total) == (3, 4)
    assert "evaluation" in written.getvalue()
    assert "left" in written.getvalue()
