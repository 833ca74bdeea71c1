"""`dffg synthesize` into places that hold an earlier result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import test_cli
from tests.cli.test_cli import TINY, run, tree

here = test_cli.here  # the fixture
LIST = "".join(f"{index:05d}.png\n" for index in range(3))


def synthesize(out: Path, count: int, *options: str) -> None:
    ended = run("synthesize", *TINY, "--out", out, "--images", count, "--steps", "4", *options)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("other", [(), ("notes.txt", "99999.png")], ids=["alone", "beside files of others"])
def test_pictures_of_the_earlier_result_go(here: Path, tmp_path: Path, other: tuple[str, ...]) -> None:
    synthesize(tmp_path / "fresh", 3)
    out = tmp_path / "pictures"
    synthesize(out, 8)
    for name in other:
        (out / name).write_text("another's")
    synthesize(out, 3, "--force")
    assert (out / "list.txt").read_text() == LIST
    expected = tree(tmp_path / "fresh")
    assert tree(out) == expected | dict.fromkeys(other, b"another's")


def test_a_list_that_names_what_is_not_ours_removes_nothing_else(here: Path, tmp_path: Path) -> None:
    out, outside = tmp_path / "pictures", tmp_path / "00000.png"
    synthesize(out, 8)
    for place in (outside, out / "notes.txt"):
        place.write_text("another's")
    (out / "list.txt").write_text(f"../00000.png\n{outside}\nnotes.txt\n00005.png\n")
    synthesize(out, 3, "--force")
    assert (outside.read_text(), (out / "notes.txt").read_text()) == ("another's", "another's")
    assert sorted(tree(out)) == [
        *LIST.split(),
        "00003.png",
        "00004.png",
        "00006.png",
        "00007.png",
        *("list.txt", "notes.txt"),
    ]
