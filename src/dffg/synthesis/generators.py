"""The generator that a configuration names: ours, or one of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dffg.config import NOISES, SynthesisConfig
from dffg.errors import StatisticsError
from dffg.graph.captured import Captured
from dffg.synthesis import chain as fast_gradient
from dffg.synthesis.baselines import BASELINES
from dffg.synthesis.chain import Visit


def chain_of(captured: Captured, config: SynthesisConfig) -> Callable[[int], Iterator[Visit]]:
    """A generator, ready to run chain after chain."""
    if config.is_fast_gradient:
        method = fast_gradient.method_of(captured, config)
        return lambda chain: fast_gradient.run_chain(captured, config, chain, method)
    if not captured.batch_norms and config.generator not in NOISES:
        raise StatisticsError(f"--generator {config.generator} needs BatchNorm, and the network has none.")
    return partial(BASELINES[config.generator], captured, config)
