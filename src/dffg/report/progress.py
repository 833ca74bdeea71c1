"""Progress on the terminal: the stage at work, and chain, step, loss, images and time left of a synthesis."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dffg.quant.learning import LearningProgress
from dffg.synthesis.synthesize import Progress as SynthesisProgress


class ProgressView:
    """One line that follows a run; nothing is left on the terminal when it ends."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def listeners(self) -> dict[str, Any]:
        """The callbacks that a run of `dffg.pipeline.steps` takes."""
        return {
            "on_stage": self.stage,
            "on_count": self.update_count,
            "progress": self.update,
            "learning_progress": self.update_learning,
        }

    def stage(self, name: str) -> None:
        """Show that another stage has begun."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=None, detail="")

    def update(self, progress: SynthesisProgress) -> None:
        """Show where a synthesis stands."""
        if self._task is None:
            self.stage("synthesis")
        assert self._task is not None
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}  "
        self._bar.update(
            self._task,
            total=progress.chains * progress.steps,
            completed=(progress.chain - 1) * progress.steps + progress.step,
            detail=(
                f"chain {progress.chain}/{progress.chains}  step {progress.step}/{progress.steps}  "
                f"{loss}images {progress.images}/{progress.count}"
            ),
        )

    def update_count(self, done: int, total: int) -> None:
        """Show how far a stage is that is counted."""
        assert self._task is not None
        self._bar.update(self._task, total=total, completed=done)

    def update_learning(self, progress: LearningProgress) -> None:
        """Show where learning stands."""
        if self._task is None:
            self.stage("learning")
        assert self._task is not None
        self._bar.update(self._task, total=progress.total, completed=progress.done, detail=progress.detail)
