"""Tables and plots of the README and the docs, from the stored results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; a plot is drawn where a page shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    ablation_tables,
    arena_tables,
    command,
    diversity,
    effort,
    families,
    figures,
    growth,
    handover,
    int8,
    lowbits_tables,
    mixed,
    overflow,
    patches,
    ranges,
    scale,
    speed,
    step_tables,
    summary,
    targets,
)

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs") / "figures"
TABLES: dict[str, Callable[[], str]] = {
    "summary": summary.summary_table,
    "int8": int8.int8_table,
    "runtime": int8.runtime_table,
    "ablation": ablation_tables.ablation_table,
    "by_quantizer": ablation_tables.by_quantizer_table,
    "diversity": diversity.diversity_table,
    "diversity_predicts": diversity.diversity_predicts_table,
    "speed": speed.speed_table,
    "step": step_tables.step_table,
    "growth": growth.growth_table,
    "command": command.command_table,
    "ranges": ranges.ranges_table,
    "arena": arena_tables.arena_table,
    "arena_short": arena_tables.arena_short_table,
    "arena_full": arena_tables.arena_full_table,
    "counted": arena_tables.counted_table,
    "equal_passes": arena_tables.equal_passes_table,
    "arena_claims": arena_tables.claims_table,
    "faster": arena_tables.faster_table,
    "views": arena_tables.views_table,
    "pareto": arena_tables.pareto_table,
    "lowbits_short": lowbits_tables.lowbits_short_table,
    "lowbits": lowbits_tables.lowbits_table,
    "lowbits_claims": lowbits_tables.lowbits_claims_table,
    "lowbits_runtime": lowbits_tables.lowbits_runtime_table,
    "effort": effort.effort_table,
    "mixed": mixed.mixed_table,
    "handover": handover.handover_table,
    "overflow": overflow.overflow_table,
    "patches": patches.patches_table,
    "scale": scale.scale_table,
    "scale_simulated": scale.scale_simulated_table,
    "families": families.families_table,
    "targets": targets.targets_table,
}


def main(root: Path = ROOT, *, check: bool = False) -> int:
    """Rewrite every table and plot; with `check`, only say whether one is out of date."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    stale = [page.name for page in pages if _render_tables(page, check=check)]
    stale += [name for name in figures.FIGURES if _render_plots(root / FOLDER, name, check=check)]
    print(f"{'out of date' if check else 'rendered'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


def _render_tables(page: Path, *, check: bool) -> bool:
    before = page.read_text(encoding="utf-8")
    after = re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", _table, before, flags=re.DOTALL)
    if after != before and not check:
        page.write_text(after, encoding="utf-8")
    return after != before


def _table(match: re.Match[str]) -> str:
    return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"


def _render_plots(folder: Path, name: str, *, check: bool) -> bool:
    """Whether the stored plot, on a light or on a dark page, shows other results than today's."""
    if figures.is_empty(name):
        return False
    paths = {theme: folder / f"{name}-{theme}.svg" for theme in figures.THEMES}
    current = [path.exists() and figures.is_current(name, path.read_text(encoding="utf-8")) for path in paths.values()]
    if all(current):
        return False
    if not check:
        folder.mkdir(parents=True, exist_ok=True)
        for theme, path in paths.items():
            path.write_text(figures.svg(name, theme), encoding="utf-8")
    return True
