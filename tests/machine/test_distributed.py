"""Chains on other processors: the same bytes, whoever makes them and whatever happens to the workers.

Needs Ray (pip install 'dffg[ray]', which is in the extra `dev`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from benchmarks import arena, cells, records
from dffg.config import SynthesisConfig
from dffg.errors import InputError
from dffg.graph.captured import capture, from_bytes, to_bytes
from dffg.images import SyntheticSet
from dffg.machine import distributed
from dffg.machine.distributed import Workers, ray_workers
from dffg.storage.checkpoint import Checkpoint
from dffg.synthesis.synthesize import synthesize_set
from tests.benchmarks.small import small_benchmark
from tests.cli import test_cli
from tests.cli.test_cli import MODULE, ROOT, run
from tests.graph.test_ends import SPEC, detector
from tests.networks import NETWORKS, captured
from tests.storage.test_checkpoint import StopError, stop_after

here = test_cli.here  # the fixture
CONFIG = SynthesisConfig(count=70, batch_size=4, steps=8)
CHAINS = 9


def same(one: SyntheticSet, other: SyntheticSet) -> bool:
    equal = np.array_equal(one.inputs, other.inputs)
    return equal and one.snapshots == other.snapshots and one.losses == other.losses


@pytest.fixture(scope="module")
def whole() -> SyntheticSet:
    """What one process makes."""
    return synthesize_set(captured("conv"), CONFIG)


@pytest.fixture(scope="module")
def ray():
    """A cluster of four processors on this machine, whatever it has."""
    module = pytest.importorskip("ray", reason="Ray is missing; pip install 'dffg[ray]'")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")  # what workers run is here, too
        with ray_workers(count=4):
            yield module


# Without Ray


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_was_sent_makes_the_same_images(name: str) -> None:
    network, config = captured(name), SynthesisConfig(count=8, batch_size=4, steps=4)
    arrived = from_bytes(to_bytes(network), network.spec)
    assert same(synthesize_set(network, config), synthesize_set(arrived, config))


def test_a_network_of_several_inputs_and_outputs_is_sent_too() -> None:
    network, config = capture(detector(), spec=SPEC), SynthesisConfig(count=8, batch_size=4, steps=4)
    arrived = from_bytes(to_bytes(network), network.spec)
    assert same(synthesize_set(network, config), synthesize_set(arrived, config))


def test_a_gap_among_kept_chains_is_filled(tmp_path: Path, whole: SyntheticSet) -> None:
    kept = Checkpoint(tmp_path / "out.partial", "this")
    synthesize_set(captured("conv"), CONFIG, checkpoint=kept)
    for chain in (0, 4):
        (tmp_path / "out.partial" / f"chain-{chain}.pt").unlink()
    seen: list[int] = []
    resumed = synthesize_set(captured("conv"), CONFIG, checkpoint=kept, progress=lambda p: seen.append(p.chain))
    assert same(resumed, whole)
    assert set(seen) == {1, 5}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"ray is not installed; install it with: pip install 'dffg\[ray\]'"),
        ray_workers(),
    ):
        pass


def test_dffg_does_not_import_ray_unasked() -> None:
    modules = "dffg.pipeline.steps, dffg.synthesis.synthesize"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules or 'dffg.machine.distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_workers_alone_are_refused(here: Path) -> None:
    ended = run("synthesize", *test_cli.TINY, "--out", "x.npz", "--workers", "2")
    assert (ended.code, ended.err) == (2, "dffg: --workers is given without --ray; give both, or neither.\n")


def test_a_worker_of_another_version_is_refused() -> None:
    what = distributed._Shared(key="new", prepare=len, reference=None, threads=1, versions=("0.0", "1.2"))
    with pytest.raises(InputError, match=r"a worker has dffg .* and torch .*, and not dffg 0\.0 and torch 1\.2"):
        distributed._prepared(what)


# With Ray


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_bytes_are_those_of_one_process(ray: object, whole: SyntheticSet, count: int) -> None:
    seen: list[tuple[int, int]] = []
    made = synthesize_set(
        captured("conv"),
        CONFIG,
        workers=Workers(ray, 1, count),
        progress=lambda p: seen.append((p.chain, p.images)),
    )
    assert same(made, whole)
    assert [chain for chain, _ in seen] == list(range(1, CHAINS + 1))
    assert seen[-1][1] == CONFIG.count


def test_a_benchmark_has_the_same_rows_with_ray(ray: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contestants = tuple(arena.Contestant(generator="dffg", options={"steps": steps}) for steps in (2, 3))
    suite = arena.Suite(networks=("small",), contestants=contestants, seeds=(0, 1), examples=30)

    def rows(folder: str, workers: Workers | None) -> list[cells.Row]:
        monkeypatch.setattr(records, "RESULTS", tmp_path / folder)
        arena.run_suite(suite, lambda names: iter([small_benchmark()]), workers)
        return records.read(arena.SUITE)

    one, two = rows("one", None), rows("two", Workers(ray, 1, 2))
    assert {row["tasks_at_once"] for row in two} == {2}
    apart = ("seconds", "tasks_at_once", "commit")
    same = [[{key: row[key] for key in row if key not in apart} for row in found] for found in (one, two)]
    assert len(one) == 4
    assert sorted(same[0], key=arena.key) == sorted(same[1], key=arena.key)
    assert rows("two", Workers(ray, 1, 2)) == two


@pytest.mark.parametrize("generator", ["noise", "zeroq"])
def test_other_generators_run_elsewhere_too(ray: object, generator: str) -> None:
    steps = {} if generator == "noise" else {"steps": 5}
    config = SynthesisConfig(count=40, batch_size=16, generator=generator, **steps)
    made = synthesize_set(captured("conv"), config, workers=Workers(ray, 1, 2))
    assert same(made, synthesize_set(captured("conv"), config))


def threads_there(_shared: None, item: int) -> int:
    return torch.get_num_threads()


def test_workers_have_as_many_threads_as_they_are_told(ray: object) -> None:
    for threads in (2, 1):
        found = [finished.result() for finished in Workers(ray, threads, None).map(threads_there, range(3))]
        assert found == [threads] * 3


def test_more_threads_than_processors_are_refused(ray: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with pytest.raises(InputError, match=r"5 threads, .* more than 4 processors; set OMP_NUM_THREADS=4"), ray_workers():
        pass


def our_workers() -> list[psutil.Process]:
    """Processes of the cluster that this process has started, at work on a task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::_run"]:
                found.append(process)
    return found


@contextlib.contextmanager
def killer(at_most: int) -> Iterator[list[int]]:
    """Kill workers that are seen at work, until so many are dead; the body gets the list of their process numbers.

    A thread looks all the time: whoever looks only now and then may find every worker between two tasks.
    """
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < at_most and not over.wait(0.01):
            for process in our_workers()[: at_most - len(killed)]:
                with contextlib.suppress(psutil.Error):
                    if process.pid not in killed:
                        process.kill()
                        killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_workers_that_are_killed_lose_and_double_nothing(ray: object) -> None:
    config = SynthesisConfig(count=96, batch_size=4, steps=256, burn_in=252)
    with killer(at_most=4) as killed:
        made = synthesize_set(captured("conv"), config, workers=Workers(ray, 1, 2))
    assert len(killed) == 4
    assert same(made, synthesize_set(captured("conv"), config))


def die(_shared: None, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_an_item_that_kills_every_worker_ends_and_the_others_arrive(
    ray: object, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_RETRIES", 2)  # every worker takes seconds to start
    finished = {one.item: one for one in Workers(ray, 1, 2).map(die, range(3))}
    assert (finished[0].result(), finished[2].result()) == (0, 2)
    assert "its workers died 3 times" in str(finished[1].error)
    assert capfd.readouterr() == ("", "")


def refuse(_shared: None, item: int) -> int:
    raise InputError(f"{item} is not wanted")


def test_an_error_there_is_the_error_here(ray: object) -> None:
    (finished,) = Workers(ray, 1, 2).map(refuse, [3])
    with pytest.raises(InputError, match=r"^3 is not wanted$"):
        finished.result()


def test_what_was_finished_is_kept_and_goes_on(ray: object, tmp_path: Path, whole: SyntheticSet) -> None:
    kept = Checkpoint(tmp_path / "out.partial", "this")
    with pytest.raises(StopError):
        synthesize_set(captured("conv"), CONFIG, workers=Workers(ray, 1, 4), checkpoint=kept, progress=stop_after(3))
    assert len(list((tmp_path / "out.partial").glob("chain-*.pt"))) == 3
    chains: list[int] = []
    resumed = synthesize_set(
        captured("conv"),
        CONFIG,
        workers=Workers(ray, 1, 2),
        checkpoint=kept,
        progress=lambda progress: chains.append(progress.chain),
    )
    assert chains == list(range(4, CHAINS + 1))
    assert same(resumed, whole)


def wait(_shared: None, item: int) -> int:
    time.sleep(0.1 if item == 0 else 60)
    return item


def test_time_running_out_ends_with_what_is_finished(ray: object) -> None:
    assert [one.item for one in Workers(ray, 1, 2).map(wait, range(4), seconds=0.5)] == [0]
    assert [one.item for one in Workers(ray, 1, 2).map(wait, [0], seconds=0.0)] == [0]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere"])
def test_a_cluster_that_is_not_there_is_said(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is missing; pip install 'dffg[ray]'")
    code = f"import dffg\nwith dffg.ray_workers({address!r}): pass"
    ended = test_cli.python(code)
    assert f"no Ray cluster can be used at '{address}'" in ended.stderr


# From outside, in processes of their own


def test_the_command_writes_the_same_file(ray: object, here: Path) -> None:
    options = ("synthesize", *test_cli.TINY, "--images", "24", "--steps", "4", "--batch-size", "4")
    assert run(*options, "--out", "one.npz").code == 0
    ended = run(*options, "--out", "many.npz", "--workers", "2", "--ray")
    assert ended.code == 0, ended.err
    assert same(SyntheticSet.load(here / "one.npz"), SyntheticSet.load(here / "many.npz"))


def test_an_interrupted_command_leaves_no_process(here: Path) -> None:
    pytest.importorskip("ray", reason="Ray is missing; pip install 'dffg[ray]'")
    options = ["synthesize", f"{MODULE}:tiny", "--input", "3x16x16", "--images", "4000", "--batch-size", "1"]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    code = test_cli.SYNTHESIS_THAT_TELLS.replace("progress.step == 3", "progress.chain == 2")
    with subprocess.Popen(
        [sys.executable, "-c", code, *options, "--out", "never.npz", "--ray", "--workers", "2"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = next(line for line in process.stderr if "assuming pixels" not in line)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=300) == 130, first + rest
    kept = f"{here / 'never.npz'}.partial has what was done, and the same command goes on from there."
    assert (first, rest.lstrip()) == ("synthesizing\n", f"dffg: interrupted; {kept}\n")
    _, left = psutil.wait_procs(family, timeout=300)
    assert left == []
    assert not (here / "never.npz").exists()
