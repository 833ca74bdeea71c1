"""The oldest versions that pyproject.toml allows: python -m tests.lowest makes an environment of them and tests in it.

Extras are left out: torchvision and timm ask for the newest torch. The tests chosen go from capture to verified file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("pytest", "hypothesis", "scikit-learn")
TESTS = (
    *("tests/synthesis/test_statistics.py", "tests/synthesis/test_synthesize.py", "tests/cli/test_recipe_file.py"),
    *("tests/test_images.py", "tests/quant/test_mixed.py", "tests/export/test_onnx.py", "tests/pipeline/test_steps.py"),
)


def lowest(requirements: list[str]) -> list[str]:
    """`numpy>=2.0` -> `numpy==2.0`; every requirement must have a lower bound, and nothing else."""
    found = [re.fullmatch(r"([\w-]+)>=([\w.]+)", text) for text in requirements]
    if not all(found):
        raise ValueError(f"not of the form name>=version: {requirements[found.index(None)]}")
    return [f"{match[1]}=={match[2]}" for match in found if match]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tests", nargs="*", default=TESTS, metavar="FILE")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory(prefix="dffg-lowest-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--upgrade", "pip"], check=True)
        subprocess.run([*install, *lowest(project["dependencies"]), *TOOLS], check=True)
        subprocess.run([*install, "--no-deps", str(ROOT)], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments.tests]
        raise SystemExit(subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
