"""Options of `python -m benchmarks`."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.__main__ import main
from click.testing import CliRunner

from benchmarks import ablation, arena, diversity, families, handover, int8, lowbits, step, targets


@pytest.mark.parametrize(
    ("command", "module", "names"),
    [
        ("ablation", ablation, ablation.CHANGES),
        ("diversity", diversity, diversity.SETTINGS),
        ("families", families, families.FAMILIES),
        ("handover", handover, handover.TOOLS),
        ("int8", int8, int8.SOURCES),
        ("lowbits", lowbits, lowbits.METHODS),
        ("step", step, step.PARTS),
        ("targets", targets, targets.SOURCES),
    ],
)
def test_by_default_a_suite_measures_everything(
    command: str, module: Any, names: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(module, "run_suite", lambda *arguments, **options: given.extend(arguments))
    CliRunner().invoke(main, [command], catch_exceptions=False)
    assert list(names) in given


def test_some_changes_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "run_suite", lambda networks, seeds, changes, workers: print(changes))
    chosen = CliRunner().invoke(main, ["ablation", "--changes", "slack 0.2, no variability;decay 0"])
    assert chosen.output == "['slack 0.2, no variability', 'decay 0']\n"


def test_labels_of_contestants_have_no_commas() -> None:
    assert not [one.label for suite in arena.SUITES.values() for one in suite.contestants if "," in one.label]
