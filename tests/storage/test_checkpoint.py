"""Long work that is stopped and goes on: the result is that of work that was never stopped."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from dffg.config import FinetuneConfig, ReconstructionConfig, SynthesisConfig
from dffg.errors import OutputError
from dffg.graph.nodes import copy_module
from dffg.quant import finetune as finetuning
from dffg.quant.finetune import finetune
from dffg.quant.reconstruct import reconstruct
from dffg.quant.stored import tensors_of
from dffg.storage.checkpoint import Checkpoint, discard, fingerprint, refuse_other_work, sealed
from dffg.synthesis.synthesize import synthesize_set
from tests.networks import captured
from tests.quant.test_reconstruct import images_of, start

NAME = "inverted-residual"
BLOCKS = ReconstructionConfig(iterations=8, together=1, batch_size=8)
STEPS = FinetuneConfig(iterations=12, batch_size=8, hard=0.5)


class StopError(Exception):
    pass


def stop_after(calls: int):
    """A callback that raises when it is called for the (calls + 1)th time."""
    seen = []

    def callback(*_arguments: object) -> None:
        seen.append(1)
        if len(seen) > calls:
            raise StopError

    return callback


@pytest.fixture
def kept(tmp_path):
    return Checkpoint(tmp_path / "out.partial", "this")


def same(first, second):
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_state_comes_back_and_goes(kept, tmp_path):
    state = {"done": 3, "values": {"a": torch.arange(4)}, "records": [(1, None, 0.5)]}
    kept.save("part", state)
    found = kept.load("part")
    assert torch.equal(found["values"]["a"], state["values"]["a"])
    assert (found["done"], found["records"]) == (3, [(1, None, 0.5)])
    discard(tmp_path / "out.partial")
    assert kept.load("part") is None
    assert list(tmp_path.iterdir()) == []


def test_states_of_other_work_and_damaged_files_are_not_found(kept, tmp_path):
    kept.save("part", {"done": 1})
    assert Checkpoint(tmp_path / "out.partial", "that").load("part") is None
    assert kept.load("other") is None
    path = tmp_path / "out.partial" / "part.pt"
    path.write_bytes(path.read_bytes()[:40])
    assert kept.load("part") is None


class Trap:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_file_without_a_state_is_not_found(kept, tmp_path):
    kept.save("half", {})
    content = io.BytesIO()
    torch.save({"subject": "this"}, content)
    (path,) = tmp_path.rglob("half.pt")
    path.write_bytes(sealed(content.getvalue()))
    assert Checkpoint(path.parent, "this").load("half") is None


def test_a_file_that_would_run_code_is_not_read(kept, tmp_path, capsys):
    kept.save("part", {"done": 1})
    torch.save({"subject": "this", "state": Trap()}, tmp_path / "out.partial" / "part.pt")
    assert kept.load("part") is None
    assert "this was run" not in capsys.readouterr().out


def test_a_fingerprint_is_of_graph_tensors_and_settings():
    module, _ = start(NAME)
    same_again = copy_module(module)
    assert fingerprint(module, BLOCKS) == fingerprint(same_again, BLOCKS)
    assert fingerprint(module, BLOCKS) != fingerprint(module, STEPS)
    other = copy_module(module)
    name, value = next((name, value) for name, value in other.named_parameters())
    before = fingerprint(other)
    with torch.no_grad():
        value.view(-1)[-1] += 1e-6
        changed = fingerprint(other)
        value.view(-1)[-1] -= 1e-6
    assert changed != before, name
    assert fingerprint(torch.zeros(2, 3)) != fingerprint(torch.zeros(3, 2))


def test_reconstruction_goes_on_behind_the_last_block(kept):
    module, parameters = start(NAME)
    images = images_of(NAME, 3)
    whole = reconstruct(module, parameters, images, BLOCKS)
    with pytest.raises(StopError):
        reconstruct(module, parameters, images, BLOCKS, stop_after(2), kept)
    records = []
    resumed = reconstruct(module, parameters, images, BLOCKS, records.append, kept)
    assert records[0].index == 2
    assert same(whole, resumed)
    again = []
    assert same(whole, reconstruct(module, parameters, images, BLOCKS, again.append, kept))
    assert again == []


def test_finetuning_goes_on_where_it_was_saved(kept, monkeypatch):
    monkeypatch.setattr(finetuning, "_SAVE_SECONDS", 0.0)
    module, parameters = start(NAME)
    images = images_of(NAME, 3)
    whole = finetune(module, parameters, images, STEPS)
    with pytest.raises(StopError):
        finetune(module, parameters, images, STEPS, stop_after(5), kept)
    steps = []
    resumed = finetune(module, parameters, images, STEPS, lambda step, loss: steps.append(step), kept)
    assert steps == list(range(6, 12))
    assert same(whole, resumed)


@pytest.mark.parametrize("options", [{}, {"generator": "zeroq"}], ids=["ours", "beyond the pixels"])
def test_synthesis_goes_on_behind_the_last_chain(kept, options):
    network, config = captured("conv"), SynthesisConfig(count=20, batch_size=2, steps=4, burn_in=1, **options)
    per_chain = 3
    whole = synthesize_set(network, config)
    with pytest.raises(StopError):
        synthesize_set(network, config, progress=stop_after(10), checkpoint=kept)
    seen = []
    resumed = synthesize_set(network, config, progress=seen.append, checkpoint=kept)
    assert seen[0].chain == 3
    assert len(seen) < whole.snapshots[-1].chain * 4 + per_chain
    assert torch.equal(torch.from_numpy(whole.inputs), torch.from_numpy(resumed.inputs))
    assert whole.snapshots == resumed.snapshots
    assert whole.losses == resumed.losses
    assert [len(losses) for losses in whole.losses] == [4, 4, 4, 2]


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_note_of_unfinished_work_that_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "work.json").write_text(content)
    refuse_other_work(tmp_path, {"bits": "W4A4"})
    (tmp_path / "work.json").write_text('{"bits": "W2A2"}')
    with pytest.raises(OutputError, match="bits was W2A2 and is W4A4"):
        refuse_other_work(tmp_path, {"bits": "W4A4"})
