"""Pages with their tables and plots."""

from __future__ import annotations

import re

from benchmarks import render
from tests.benchmarks.made_up import ARENA


def test_pages_are_rendered_and_checked(store, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("a\n<!-- table: arena -->\nold\n<!-- end -->\nb\n")
    store["arena"] = ARENA
    assert render.main(tmp_path, check=True) == 1
    assert "old" in (tmp_path / "README.md").read_text()
    assert render.main(tmp_path) == 0
    assert "5.25 +- 0.35" in (tmp_path / "README.md").read_text()
    assert render.main(tmp_path, check=True) == 0
    store["arena"] = ARENA[:-4]
    assert render.main(tmp_path, check=True) == 1
    assert "README.md, pareto" in capsys.readouterr().out


def test_published_tables_have_rows():
    """A new option makes cells of other settings of all that is stored, until the stored rows say what they had."""
    pages = [render.ROOT / "README.md", *sorted((render.ROOT / "docs").glob("*.md"))]
    tables_of = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
    found = {name: body for page in pages for name, body in tables_of.findall(page.read_text(encoding="utf-8"))}
    assert not {name for name, body in found.items() if len(body.splitlines()) <= 2}
