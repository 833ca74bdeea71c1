"""One run of a long command: where its result goes, what it keeps until then, and how long every stage took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dffg
from dffg.config import SynthesisConfig
from dffg.errors import DataError, DffgError, OutputError, ShortageError
from dffg.evaluation.data import Data
from dffg.graph.captured import Captured
from dffg.machine.device import HOST
from dffg.machine.environment import package_version
from dffg.machine.memory import give_back, new_objects_only
from dffg.quant.learning import LearningCallback
from dffg.report.result import Seconds
from dffg.storage.checkpoint import Checkpoint, discard, fingerprint, refuse_other_work
from dffg.storage.output import check_directory, claimed, unfinished_directory
from dffg.synthesis.synthesize import ProgressCallback

if TYPE_CHECKING:
    from dffg.machine.distributed import Workers

SHOWN_DIGITS = 12
PACKAGE = Path(dffg.__file__).parent

StageCallback = Callable[[str], None]
# How much of a stage is done, and of how much.
CountCallback = Callable[[int, int], None]


class Clock:
    """Times the stages and tells the listeners which one begins and how far it is."""

    def __init__(self, on_stage: StageCallback | None, on_count: CountCallback | None = None) -> None:
        self._on_stage = on_stage or (lambda name: None)
        self._on_count = on_count or (lambda done, total: None)
        self._started = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens within is this stage, whose memory ends with it."""
        self._on_stage(name)
        started = time.perf_counter()
        yield
        give_back()
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - started

    def ticks(self, total: int) -> Callable[[], None]:
        """To be called after each of so many parts of a stage."""
        done = itertools.count(1)
        return lambda: self._on_count(next(done), total)

    def seconds(self) -> Seconds:
        """How long every stage took, and all until now."""
        spent = {name.replace("-", "_").replace(" ", "_"): seconds for name, seconds in self._spent.items()}
        stages = [field.name for field in fields(Seconds) if field.name != "total"]
        return Seconds(**{name: spent.get(name, 0.0) for name in stages}, total=time.perf_counter() - self._started)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every run has: the network, where its result goes, and who listens."""

    captured: Captured
    out: Path
    name: str
    command: str
    notes: tuple[str, ...]
    evaluation: Data | None
    clock: Clock
    progress: ProgressCallback | None
    learning_progress: LearningCallback | None
    work: dict[str, str]
    device: torch.device = HOST
    memory_limit: int | None = None
    workers: Workers | None = None

    @cached_property
    def network(self) -> Captured:
        """The network where images are made and learned from."""
        return self.captured.on(self.device)

    def kept(self, *decisive: Any) -> Checkpoint:
        """Where long work keeps what it has done until the result is written. decisive: what decides how it goes."""
        return Checkpoint(unfinished_directory(self.out), fingerprint(*decisive), self.work)


@contextmanager
def place(out: Path, force: bool) -> Iterator[None]:
    """A directory that can be written, for this process alone."""
    check_directory(out, force=force)
    with claimed(out), new_objects_only():
        check_directory(out, force=force)  # another process may have written it just now
        yield


@contextmanager
def unfinished_work(out: Path, work: dict[str, str], force: bool) -> Iterator[None]:
    """Go on from what was kept of the same work; work that cannot go on as asked leaves nothing behind.

    Work that is stopped, or for which there is no room on the disk or in memory, or data cannot be read, keeps what it
    has done.
    """
    directory = unfinished_directory(out)
    refuse_other_work(directory, work, anew=force)
    try:
        yield
    except (OutputError, DataError, ShortageError):
        raise
    except DffgError:
        discard(directory)
        raise


@contextmanager
def unfinished_images(
    captured: Captured, out: Path, config: SynthesisConfig, *, device: torch.device, force: bool
) -> Iterator[Checkpoint]:
    """Where images that are made for their own sake are kept until they are written to `out` within."""
    work = describe_work(captured, config, device=device)
    kept = Checkpoint(unfinished_directory(out), fingerprint(captured.module, config), work)
    with unfinished_work(out, work, force):
        yield kept
    discard(unfinished_directory(out))


@cache
def fingerprint_of_code(folder: Path) -> str:
    """SHA-256 over the Python files of a folder, at any depth: a version number stays while code is worked on."""
    return fingerprint([(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.py"))])


def describe_work(captured: Captured, *configs: Any, **others: Any) -> dict[str, str]:
    """Everything that decides how long work goes, by the names of the options."""
    decisive = {
        "dffg": package_version("dffg"),
        "the code of dffg": fingerprint_of_code(PACKAGE)[:SHOWN_DIGITS],
        "the number of threads": torch.get_num_threads(),
        "torch": package_version("torch"),
        "the network": fingerprint(captured.module, captured.spec)[:SHOWN_DIGITS],
        **others,
    }
    for config in configs:
        decisive |= asdict(config)
    return {name: str(value) for name, value in decisive.items()}
