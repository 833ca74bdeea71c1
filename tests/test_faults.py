"""What happens to a run when the machine, the disk or the user gets in its way."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

import dffg.pipeline.run
from dffg.config import LearningConfig, QuantizationConfig, SynthesisConfig
from dffg.errors import DataError, DffgError, OutputError, ShortageError
from dffg.evaluation.data import load_data
from dffg.graph.captured import Captured, capture
from dffg.pipeline.steps import finetune, quantize
from dffg.report.result import PAGE_FILE, Result
from dffg.spec import ImageSpec
from dffg.storage.output import claimed
from dffg.synthesis.fitting import bytes_per_image
from tests.interrupt_suite import interrupt
from tests.kill_suite import tiny
from tests.networks import captured

QUICK = SynthesisConfig(count=8, batch_size=4, steps=3, burn_in=1)
LEARNING = LearningConfig(learning_images=16, reconstruction_steps=4, finetune_steps=4)
FILES = ("images.npz", "model.onnx", "parameters.npz")


@cache
def tiny_network() -> Captured:
    return capture(tiny(), spec=ImageSpec(shape=(3, 8, 8)))


def lasting(result: Result) -> dict[str, str]:
    """Hashes of what does not depend on how long a run took, as the page does."""
    return {name: digest for name, digest in result.files.items() if name != PAGE_FILE}


class StopError(Exception):
    pass


def run(out: Path, *, network: Captured | None = None, bits: str = "W4A4", seed: int = 0, **options: object) -> Result:
    return quantize(
        network or tiny_network(),
        out,
        synthesis=replace(QUICK, seed=seed),
        quantization=QuantizationConfig(bits=bits),
        learning=LEARNING,
        **options,
    )


def stop_at(stage: str):
    def on_stage(name: str) -> None:
        if name == stage:
            raise StopError

    return on_stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that nothing has stopped."""
    return run(tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The place of a run that was stopped after synthesis."""
    with pytest.raises(StopError):
        run(tmp_path / "out", on_stage=stop_at("calibration"))
    assert (tmp_path / "out.partial" / "chain-0.pt").exists()
    return tmp_path / "out"


# Going on


@pytest.mark.parametrize("stage", ["learning", "export"])
def test_a_run_stopped_in_any_stage_ends_the_same(tmp_path: Path, whole: Result, stage: str) -> None:
    with pytest.raises(StopError):
        run(tmp_path / "out", on_stage=stop_at(stage))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert lasting(run(tmp_path / "out")) == lasting(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_picture_that_cannot_be_read_costs_nothing_that_was_learned(tmp_path: Path, whole: Result) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    data = load_data(folder, tiny_network().spec, labelled=True)
    with pytest.raises(DataError, match=r"b\.png cannot be read as a picture"):
        run(tmp_path / "out", evaluation=data)
    assert (tmp_path / "out.partial" / "reconstruction.pt").exists()
    shutil.copy(folder / "a.png", folder / "b.png")
    assert lasting(run(tmp_path / "out", evaluation=data)) == lasting(whole)


def test_memory_that_is_short_after_learning_costs_nothing_that_was_learned(
    tmp_path: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrink(stage: str) -> None:
        if stage == "held-out images":
            monkeypatch.setattr("dffg.synthesis.fitting.free_bytes", lambda device: 10)

    with pytest.raises(ShortageError, match="one image takes about"):
        run(tmp_path / "out", on_stage=shrink)
    assert (tmp_path / "out.partial" / "reconstruction.pt").exists()
    monkeypatch.undo()
    assert lasting(run(tmp_path / "out")) == lasting(whole)


def test_unfinished_work_of_other_settings_is_refused_and_kept(stopped: Path) -> None:
    before = {path.name: path.read_bytes() for path in (stopped.parent / "out.partial").iterdir()}
    with pytest.raises(OutputError, match=r"begun otherwise: bits was W4A4 and is W3A4\. .*--force"):
        run(stopped, bits="W3A4")
    assert {path.name: path.read_bytes() for path in (stopped.parent / "out.partial").iterdir()} == before


def test_unfinished_work_of_another_network_is_refused(stopped: Path) -> None:
    with pytest.raises(OutputError, match=r"the network was [0-9a-f]{12} and is [0-9a-f]{12}"):
        run(stopped, network=captured("conv"))


def test_unfinished_work_of_another_version_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dffg.pipeline.run, "package_version", lambda name: "99.0")
    with pytest.raises(OutputError, match=r"dffg was 0\.1\.0 and is 99\.0"):
        run(stopped)


def test_unfinished_work_of_other_code_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr(dffg.pipeline.run, "fingerprint_of_code", lambda folder: folders.append(folder) or "0" * 64)
    with pytest.raises(OutputError, match=r"the code of dffg was [0-9a-f]{12} and is 0{12}"):
        run(stopped)
    assert set(folders) == {Path(dffg.__file__).parent}


def test_a_fingerprint_of_code_is_of_names_and_bytes(tmp_path: Path) -> None:
    seen = set()
    for number, (name, code) in enumerate([("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 1")]):
        folder = tmp_path / str(number) / "inner"
        folder.mkdir(parents=True)
        (folder / name).write_text(code)
        seen.add(dffg.pipeline.run.fingerprint_of_code(folder.parent))
    assert len(seen) == 3


def test_unfinished_work_of_another_number_of_threads_is_refused(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    with pytest.raises(OutputError, match=r"the number of threads was \d+ and is 99"):
        run(stopped)


def test_unfinished_work_in_batches_of_another_size_is_refused(stopped: Path) -> None:
    """Only where the limit on memory changes them."""
    limit = 2 * bytes_per_image(tiny_network())
    with pytest.raises(OutputError, match=r"begun otherwise: batch_size was 4 and is 2\."):
        run(stopped, memory_limit=limit)
    with pytest.raises(StopError):
        run(stopped, memory_limit=2 * limit, on_stage=stop_at("learning"))


def test_chains_of_batches_that_fit_into_a_limit_are_kept(tmp_path: Path) -> None:
    limit = 2 * bytes_per_image(tiny_network())
    with pytest.raises(StopError):
        run(tmp_path / "out", memory_limit=limit, on_stage=stop_at("calibration"))
    steps: list[int] = []
    steps_before: dict[str, int] = {}
    resumed = run(
        tmp_path / "out",
        memory_limit=limit,
        progress=lambda progress: steps.append(progress.step),
        on_stage=lambda name: steps_before.setdefault(name, len(steps)),
    )
    assert steps_before["calibration"] == 0
    assert lasting(resumed) == lasting(run(tmp_path / "other", memory_limit=limit))


def test_training_of_other_steps_or_of_another_result_is_refused(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    run(first, seed=0)
    run(second, seed=1)
    with pytest.raises(StopError):
        finetune(tiny_network(), first, tmp_path / "out", steps=4, images=24, on_stage=stop_at("learning"))
    with pytest.raises(OutputError, match=r"begun otherwise: finetune_steps was 4 and is 5\."):
        finetune(tiny_network(), first, tmp_path / "out", steps=5, images=24)
    with pytest.raises(OutputError, match=r"the earlier result was [0-9a-f]{12} and is [0-9a-f]{12}"):
        finetune(tiny_network(), second, tmp_path / "out", steps=4, images=24)


def test_force_starts_anew(stopped: Path, whole: Result, tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "work.json").write_text(json.dumps({"bits": "W2A2"}))
    said: list[int] = []
    forced = run(stopped, force=True, progress=lambda progress: said.append(progress.chain))
    assert lasting(forced) == lasting(whole)
    assert said[0] == 1
    assert not (tmp_path / "out.partial").exists()


def test_damaged_states_are_made_again(stopped: Path, whole: Result) -> None:
    path = stopped.parent / "out.partial" / "chain-0.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert lasting(run(stopped)) == lasting(whole)


def test_a_directory_of_that_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("kept")
    quantize(tiny_network(), tmp_path / "out", synthesis=QUICK)
    assert (tmp_path / "out.partial" / "mine.txt").read_text() == "kept"


# Two at once


def _hold(place: Path, ready: multiprocessing.synchronize.Event) -> None:
    with claimed(place):
        ready.set()
        signal.pause()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    first = context.Process(target=_hold, args=(tmp_path / "out", ready))
    first.start()
    assert ready.wait(600)
    with pytest.raises(OutputError, match="is being written by another process"):
        run(tmp_path / "out")
    with claimed(tmp_path / "other"):
        pass
    first.kill()
    first.join()
    with claimed(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


# Disks


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond so many bytes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path, size: int) -> None:
    with files_up_to(size), pytest.raises(DffgError, match="File too large"):
        quantize(tiny_network(), tmp_path / "out", synthesis=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_keeps_what_was_done(tmp_path: Path, whole: Result) -> None:
    with contextlib.ExitStack() as stack:

        def fill(stage: str) -> None:
            if stage == "learning":
                stack.enter_context(files_up_to(500))

        with pytest.raises(OutputError, match="File too large"):
            run(tmp_path / "out", on_stage=fill)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert lasting(run(tmp_path / "out")) == lasting(whole)


@pytest.mark.parametrize("stage", ["learning", "verify"])
def test_a_directory_that_is_removed_meanwhile(tmp_path: Path, whole: Result, stage: str) -> None:
    """What was made goes into a new one; what was being written is gone, and that is said."""
    place = tmp_path / "place"

    def remove(name: str) -> None:
        if name == stage:
            shutil.rmtree(place)

    if stage == "verify":
        with pytest.raises(DffgError, match=r"place/\.out\..*"):
            run(place / "out", on_stage=remove)
        return
    assert lasting(run(place / "out", on_stage=remove)) == lasting(whole)
    assert [path.name for path in place.iterdir()] == ["out"]


# Ctrl-C

TINY = ("quantize", "tests.kill_suite:tiny", "--input", "3x8x8", "--images", "8", "--steps", "4")
LEARNED = ("--bits", "W4A4", "--learning-images", "8", "--reconstruction-steps", "1000", "--finetune-steps", "1000")


@pytest.mark.parametrize(
    ("stage", "after", "options"),
    [
        ("capture", 0.05, ()),
        ("export", 0.3, ()),
        ("verify", 0.0, ()),
        ("learning", 0.3, LEARNED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupted_run_says_so_in_one_line(
    tmp_path: Path, stage: str, after: float, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    ended = interrupt(stage, after, [*TINY, "--out", str(out), *options])
    kept = f"{out}.partial has what was done, and the same command goes on from there"
    assert ended.code == 130, ended.said
    assert ended.said.strip() == f"dffg: interrupted; {kept if options else 'nothing was written'}."
    assert [path.name for path in tmp_path.iterdir()] == (["out.partial"] if options else [])
