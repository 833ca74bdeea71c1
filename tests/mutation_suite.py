"""Change the arithmetic, one operator or number at a time, and see the tests fail: python -m tests.mutation_suite.

Needs `pip install cosmic-ray`, which makes the changes, in a copy. Left out are changes of type annotations, and of an
operator into any but its nearest relatives: all others are found by the same tests. What survives is printed, to be
read: some changes, like that of a constant that only guards a division, change nothing that one could see.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "update.py": "tests/test_update.py",
    "statistics.py": "tests/test_statistics.py",
    "padding.py": "tests/test_padding.py",
    "fold.py": "tests/test_fold.py",
    "quant/affine.py": "tests/quant/test_affine.py",
    "quant/squant.py": "tests/quant/test_squant.py",
    "quant/moments.py": "tests/quant/test_moments.py",
    "quant/bias.py": "tests/quant/test_bias.py",
    "quant/ranges.py": "tests/quant/test_ranges.py",
    "quant/allocation.py": "tests/quant/test_allocation.py",
    "quant/widths.py": "tests/quant/test_widths.py",
    "export/packing.py": "tests/export/test_packing.py",
}
_NEAREST = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Pow_Mul", "Mod_Mul")
_LEFT_OUT = [rf"core/ReplaceBinaryOperator_(?!({'|'.join(_NEAREST)})$).*", "core/ExceptionReplacer", "core/AddNot"]
_CONFIG = """
[cosmic-ray]
module-path = "src/dffg/{module}"
timeout = 120.0
excluded-modules = []
test-command = "{python} -m pytest -q -x -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {left_out}
"""


def mutate(module: str, place: Path) -> tuple[Counter[str], list[str]]:
    """How many changes of a module its tests have noticed, and where those are that they have not."""
    config = _CONFIG.format(module=module, python=sys.executable, tests=TESTS[module], left_out=_LEFT_OUT)
    (place / "mutation.toml").write_text(config, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{place / 'src'}:{place}", "OMP_NUM_THREADS": "1"}
    for command in (
        ("cosmic-ray", "init", "--force", "mutation.toml", "mutation.sqlite"),
        ("cr-filter-operators", "mutation.sqlite", "mutation.toml"),
        ("cosmic-ray", "exec", "mutation.toml", "mutation.sqlite"),
    ):
        subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    return _read(place / "mutation.sqlite")


def _read(path: Path) -> tuple[Counter[str], list[str]]:
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    outcomes, survivors = Counter[str](), []
    with use_db(path, WorkDB.Mode.open) as database:
        changes = {item.job_id: item.mutations[0] for item in database.work_items}
        for job, result in database.results:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            noticed = result.test_outcome != TestOutcome.SURVIVED
            outcomes["killed" if noticed else "survived"] += 1
            if not noticed:
                change = changes[job]
                survivors.append(f"line {change.start_pos[0]}: {change.operator_name.removeprefix('core/')}")
    return outcomes, sorted(survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE", help=f"of {', '.join(TESTS)}")
    total = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="dffg-mutants-") as folder:
        place = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, place / name)
        shutil.copy(ROOT / "pyproject.toml", place)
        for module in parser.parse_args().modules:
            outcomes, survivors = mutate(module, place)
            total += outcomes
            print(f"{module}: {outcomes['killed']} of {outcomes.total()} killed", *survivors, sep="\n    ", flush=True)
    print(f"all: {total['killed']} of {total.total()} killed ({total['killed'] / max(1, total.total()):.1%})")


if __name__ == "__main__":
    main()
