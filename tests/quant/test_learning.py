"""What a recipe learns: in which order, with which settings, and what is said meanwhile."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from dffg.config import LearningConfig
from dffg.quant import learning
from dffg.quant.blocks import Block
from dffg.quant.learning import LearningProgress, learn
from dffg.quant.reconstruct import BlockRecord

RECORD = BlockRecord(
    block=Block(input="x", output="conv", layers=("conv",)),
    index=1,
    count=3,
    iterations=5,
    seconds=0.1,
    error_before=0.25,
    error_after=0.125,
)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Both steps note their arguments and name themselves as the result."""
    seen: list[tuple[Any, ...]] = []

    def step(name: str, told: tuple[Any, ...], *arguments: Any) -> str:
        *before, tell, checkpoint = arguments
        seen.append((name, *before, checkpoint))
        tell(*told)
        return name

    monkeypatch.setattr(learning, "reconstruct", partial(step, "reconstructed", (RECORD,)))
    monkeypatch.setattr(learning, "finetune", partial(step, "tuned", (6, 0.5)))
    return seen


def run(progress: Any = None, **options: Any) -> Any:
    config = LearningConfig(recipe="fast", learning_images=8, **options)
    return learn("module", "parameters", torch.zeros(1), config, 7, progress, "kept")


def test_blocks_are_reconstructed_before_the_network_is_tuned(called: list[tuple[Any, ...]]) -> None:
    assert run(reconstruction_steps=20, finetune_steps=9, learning_seconds=3.5) == "tuned"
    (first, module, parameters, _, blocks, kept), (second, _, learned, _, network, also) = called
    assert (first, module, parameters, kept) == ("reconstructed", "module", "parameters", "kept")
    assert (blocks.iterations, blocks.seed, blocks.max_seconds) == (20, 7, 3.5)
    assert (second, learned, also) == ("tuned", "reconstructed", "kept")
    assert (network.iterations, network.seed) == (9, 7)


def test_random_numbers_of_the_caller_go_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "reconstruct", lambda *_: torch.manual_seed(1))
    monkeypatch.setattr(learning, "finetune", lambda *_: torch.rand(3))
    before = torch.get_rng_state()
    run(reconstruction_steps=20, finetune_steps=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_no_steps_is_left_out(called: list[tuple[Any, ...]]) -> None:
    assert run(reconstruction_steps=20, finetune_steps=0) == "reconstructed"
    assert run(reconstruction_steps=0, finetune_steps=9) == "tuned"
    assert run(reconstruction_steps=0, finetune_steps=0) == "parameters"
    assert [name for name, *_ in called] == ["reconstructed", "tuned"]


def test_progress_counts_what_is_done(called: list[tuple[Any, ...]]) -> None:
    said: list[LearningProgress] = []
    run(said.append, reconstruction_steps=20, finetune_steps=9)
    assert said == [
        LearningProgress(done=2, total=3, detail="block conv: error 25.00% -> 12.50%"),
        LearningProgress(done=7, total=9, detail="fine-tuning: loss 0.500"),
    ]
