"""The benchmark of families: its networks, and what it says of one that goes and one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import families, records

RECORD = {
    "name": "one",
    "network": "Net",
    "what": "1d",
    "trained": False,
    "input": "1x8",
    "verified": True,
    "integer_kernels": 3,
    "float_kernels": 1,
    "steps_apart": 0,
    "sqnr_db": 40.04,
    "in_float": ["silu", "lstm"],
    "seconds": 12.4,
}


def test_a_network_goes_from_the_command_to_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    families.run_suite(["m5"])
    (record,) = records.read(families.SUITE)
    assert (record["verified"], record["integer_kernels"], record["float_kernels"]) == (True, 5, 0)
    assert record["in_float"] == ["log_softmax"]
    assert 20 < record["sqnr_db"] < 80
    assert families.families_table().splitlines()[2].startswith("| 1d | M5 | 1x8000 | random | yes | 5 of 5 | 0 |")


def test_the_table_shows_the_newest_of_every_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    changes: list[dict[str, Any]] = [{"verified": False}, {}, {"name": "two", "in_float": [], "trained": True}]
    for change in changes:
        records.append(families.SUITE, RECORD | change)
    assert families.families_table().splitlines()[2:] == [
        "| 1d | Net | 1x8 | random | yes | 3 of 4 | 0 | 40.0 | silu, lstm | 12 |",
        "| 1d | Net | 1x8 | trained | yes | 3 of 4 | 0 | 40.0 | nothing | 12 |",
    ]


def test_a_network_without_a_file_is_no_row_and_keeps_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    broken = families.Family(name="Net", what="1d", make=families.M5, input=("--input", "1x8"))
    monkeypatch.setitem(families.FAMILIES, "m5", broken)
    families.run_suite(["m5"])
    (record,) = records.read(families.SUITE)
    assert record["code"] == 2
    assert "--input" in record["error"]
    assert len(families.families_table().splitlines()) == 2


@pytest.mark.parametrize("name", ["m5", "crnn", "unet"])
def test_networks_have_the_statistics_of_what_they_were_shown(name: str) -> None:
    model = getattr(families, name)()
    assert not model.training
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    for norm in norms:
        assert int(norm.num_batches_tracked) == 2
        assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_biases_lie_around_what_the_family_says(bias: float) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.BatchNorm2d(1000))

    family = families.Family(name="Net", what="1d", make=make, input=("--input", "1000x2x2"), bias=bias)
    assert float(families.made(family)[0].bias.detach().mean()) == pytest.approx(bias, abs=0.05)
