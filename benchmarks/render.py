"""Tables of the README and the docs, rendered from the stored results between markers."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.tables import TABLES

ROOT = Path(__file__).parents[1]


def main(*, check: bool = False) -> int:
    """Rewrite every table between its markers; with `check`, only say whether one is out of date."""
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = path.read_text(encoding="utf-8")
        after = re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", _replace, before, flags=re.DOTALL)
        if after != before:
            stale.append(path.name)
            if not check:
                path.write_text(after, encoding="utf-8")
    print(f"{'out of date' if check else 'rendered'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


def _replace(match: re.Match[str]) -> str:
    return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"
