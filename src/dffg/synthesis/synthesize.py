"""Calibration images as a stream: run chains until enough exist, keep their snapshots. `chain.py` has the main idea."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from dffg.config import SynthesisConfig
from dffg.errors import InputError, StatisticsError
from dffg.graph.captured import Captured, from_bytes, to_bytes
from dffg.images import SyntheticSet, concatenate
from dffg.machine.device import is_out_of_memory
from dffg.machine.memory import physical_memory_bytes, reused_memory
from dffg.spec import ImageSpec
from dffg.storage.checkpoint import Checkpoint
from dffg.synthesis.chain import Visit
from dffg.synthesis.fitting import fitting
from dffg.synthesis.generators import chain_of
from dffg.synthesis.snapshots import (
    ChainState,
    Snapshot,
    as_stored,
    chains_needed,
    images_of,
    images_per_chain,
    is_kept,
    packed,
    unpacked,
)

if TYPE_CHECKING:
    from dffg.machine.distributed import Workers


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a synthesis stands after a pass."""

    chain: int
    chains: int
    step: int
    steps: int
    loss: float | None
    images: int
    count: int


ProgressCallback = Callable[[Progress], None]
PreparedChains = tuple[Captured, SynthesisConfig, Callable[[int], Iterator[Visit]]]


def synthesize(
    captured: Captured, config: SynthesisConfig | None = None, *, progress: ProgressCallback | None = None
) -> Iterator[Tensor]:
    """Make calibration images: a stream of batches of network inputs, each (batch_size, *spec.shape).

    Batches are yielded as they are made, so memory does not grow with `config.count`. The same seed, machine, thread
    count and batch size give the same bytes. Pictures are rounded to 8-bit pixels when they are kept. The network
    computes where it lies (`Captured.on`), and images come to the CPU.
    """
    for snapshot in snapshots(captured, config or SynthesisConfig(), progress=progress):
        yield snapshot.images


@reused_memory()
def synthesize_set(
    captured: Captured,
    config: SynthesisConfig | None = None,
    *,
    progress: ProgressCallback | None = None,
    checkpoint: Checkpoint | None = None,
    memory_limit: int | None = None,
    workers: Workers | None = None,
) -> SyntheticSet:
    """Make calibration images and collect them with their configuration, seed and losses.

    checkpoint: where finished chains are kept, and found if this was stopped before. memory_limit: bytes that a step
    may take, by default what is available; the batch is halved until it fits, and once more whenever memory runs out
    all the same. The configuration of the result says what it was. workers: run whole chains elsewhere, see
    `dffg.ray_workers`; the images are the same bytes. Raises InputError where the images do not fit into this machine's
    memory.
    """
    config = config or SynthesisConfig()
    _refuse_more_than_memory(captured.spec, config)
    fitted = fitting(captured, config, memory_limit)
    while True:
        try:
            # What is kept of chains of one size does not go on in those of another.
            return _collected(captured, fitted, progress, checkpoint if fitted == config else None, workers)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or fitted.batch_size == 1:
                raise
        fitted = replace(fitted, batch_size=fitted.batch_size // 2)


def _collected(
    captured: Captured,
    config: SynthesisConfig,
    progress: ProgressCallback | None,
    checkpoint: Checkpoint | None,
    workers: Workers | None,
) -> SyntheticSet:
    states = {} if checkpoint is None else _finished(checkpoint, config)
    missing = [chain for chain in range(chains_needed(config)) if chain not in states]
    for chain, state in _chains(captured, config, missing, progress, workers):
        states[chain] = state
        if checkpoint is not None and len(state["images"]) == images_of(chain, config):
            checkpoint.save(f"chain-{chain}", state)
    kept = [snapshot for chain in sorted(states) for snapshot in unpacked(states.pop(chain), chain, captured.spec)]
    return SyntheticSet(
        inputs=concatenate([snapshot.images.numpy() for snapshot in kept]),
        spec=captured.spec,
        config=config,
        snapshots=tuple(snapshot.record for snapshot in kept),
        losses=tuple({snapshot.chain: snapshot.losses for snapshot in kept}.values()),
    )


def _chains(
    captured: Captured,
    config: SynthesisConfig,
    chains: list[int],
    progress: ProgressCallback | None,
    workers: Workers | None,
) -> Iterator[tuple[int, ChainState]]:
    """Chains that have kept something, by number, here one after the other or as workers finish them."""
    if workers is not None:
        yield from _chains_elsewhere(captured, config, chains, progress, workers)
        return
    deadline, run_chain = _deadline(config), chain_of(captured, config)
    for chain in chains:
        kept = list(_snapshots_of(chain, captured.spec, config, run_chain, deadline, progress))
        if kept:
            yield chain, packed(kept, captured.spec)
        if time.monotonic() > deadline:
            return


def _chains_elsewhere(
    captured: Captured,
    config: SynthesisConfig,
    chains: list[int],
    progress: ProgressCallback | None,
    workers: Workers,
) -> Iterator[tuple[int, ChainState]]:
    """Where time is limited, chains that have not ended by then are given up, but for the first to end."""
    whole = replace(config, max_seconds=None)
    done, images = (
        chains_needed(config) - len(chains),
        config.count - sum(images_of(chain, config) for chain in chains),
    )
    for finished in workers.map(
        run_packed_chain,
        chains,
        prepare=prepare_chains,
        shared=(to_bytes(captured), captured.spec, whole),
        seconds=config.max_seconds,
    ):
        state = finished.result()
        done, images = done + 1, images + len(state["images"])
        if progress is not None:
            progress(_progress_of_chains(done, state["losses"][-1], config, images))
        yield finished.item, state


def prepare_chains(shared: tuple[bytes, ImageSpec, SynthesisConfig]) -> PreparedChains:
    """What a worker needs for all chains of a synthesis, from what it was sent."""
    program, spec, config = shared
    captured = from_bytes(program, spec)
    return captured, config, chain_of(captured, config)


@reused_memory()
def run_packed_chain(prepared: PreparedChains, chain: int) -> ChainState:
    """One whole chain in a worker."""
    captured, config, run_chain = prepared
    return packed(list(_snapshots_of(chain, captured.spec, config, run_chain)), captured.spec)


def _refuse_more_than_memory(spec: ImageSpec, config: SynthesisConfig) -> None:
    needed = 4 * math.prod(spec.shape) * max(config.count, config.batch_size)
    available = physical_memory_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"{config.count} images of shape {spec.written_shape} in batches of {config.batch_size} take "
            f"{needed / 1e9:.0f} GB, and this machine has {available / 1e9:.0f}; make fewer, or in smaller batches."
        )


def _finished(checkpoint: Checkpoint, config: SynthesisConfig) -> dict[int, ChainState]:
    """All chains that were kept, by number; workers may have left gaps."""
    found = {chain: checkpoint.load(f"chain-{chain}") for chain in range(chains_needed(config))}
    return {chain: state for chain, state in found.items() if state is not None}


def snapshots(
    captured: Captured,
    config: SynthesisConfig,
    *,
    progress: ProgressCallback | None = None,
    run_chain: Callable[[int], Iterator[Visit]] | None = None,
) -> Iterator[Snapshot]:
    """As `synthesize`, with chain, step and loss of every kept batch.

    `run_chain` takes the place of the generator that the configuration names, for experiments.
    """
    deadline, run_chain = _deadline(config), run_chain or chain_of(captured, config)
    for chain in range(chains_needed(config)):
        yield from _snapshots_of(chain, captured.spec, config, run_chain, deadline, progress)
        if time.monotonic() > deadline:
            return


def _snapshots_of(
    chain: int,
    spec: ImageSpec,
    config: SynthesisConfig,
    run_chain: Callable[[int], Iterator[Visit]],
    deadline: float = math.inf,
    progress: ProgressCallback | None = None,
) -> Iterator[Snapshot]:
    """What one chain keeps. It depends on nothing that other chains do, so that each can run anywhere."""
    made = chain * images_per_chain(config)
    losses: list[float | None] = []
    for visit in run_chain(chain):
        losses.append(visit.loss)
        late = time.monotonic() > deadline
        keep = is_kept(visit.step, config) or (late and made == 0)
        if keep:
            _check_images(visit)
            images = as_stored(visit.images[: config.count - made], spec)
            made += len(images)
        if progress is not None:
            progress(_progress(visit, chain, config, made))
        if keep:
            yield Snapshot(images=images, chain=chain, step=visit.step, loss=visit.loss, losses=tuple(losses))
        if late or made == config.count:
            return


def _check_images(visit: Visit) -> None:
    """Pixels are stored as integers, where NaN would be black."""
    if not visit.images.isfinite().all():
        raise StatisticsError(
            f"the images are NaN after {visit.step} steps, where the loss is {visit.loss}: on inputs within the bounds "
            "the network computes values that are no numbers. Give the bounds, mean and std that it was trained with."
        )


def _deadline(config: SynthesisConfig) -> float:
    return math.inf if config.max_seconds is None else time.monotonic() + config.max_seconds


def _progress(visit: Visit, chain: int, config: SynthesisConfig, made: int) -> Progress:
    return Progress(
        chain=chain + 1,
        chains=chains_needed(config),
        step=visit.step + 1,
        steps=config.steps,
        loss=visit.loss,
        images=made,
        count=config.count,
    )


def _progress_of_chains(done: int, loss: float | None, config: SynthesisConfig, made: int) -> Progress:
    """Where chains end in any order: how many have, and not which."""
    return Progress(
        chain=done,
        chains=chains_needed(config),
        step=config.steps,
        steps=config.steps,
        loss=loss,
        images=made,
        count=config.count,
    )
