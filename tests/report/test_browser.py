"""The page in a real browser: Debian's chromium, driven by playwright. Pictures of it go to DFFG_SCREENSHOTS if set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dffg.report.html import render_comparison, render_page
from dffg.spec import ImageSpec
from tests.report.pages import HOSTILE, made_set, plain_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

LONG = "stages.3.blocks.11.a_very_long_name_of_a_layer_that_does_not_end.conv"
# For every piece of text: its contrast with what is behind it, by the formula of WCAG 2.2 (relative luminance).
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || element.closest("script, title") || element.checkVisibility() === false) continue;
    const style = getComputedStyle(element), isDrawn = element.namespaceURI.endsWith("svg");
    const [one, other] = [channels(isDrawn ? style.fill : style.color), behind(element)].map(light);
    found.push([text, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, as files."""
    folder = tmp_path_factory.mktemp("pages")
    narrow = plain_report(layers=[layer | {"name": f"{LONG}{layer['name']}"} for layer in plain_report()["layers"]])
    hostile = plain_report(model=HOSTILE, layers=[plain_report()["layers"][0] | {"name": HOSTILE}], problems=[HOSTILE])
    texts = {
        "report": render_page(plain_report(problems=["a problem " + "of many words " * 20]), made_set()),
        "long": render_page(narrow | {"model": LONG, "command": LONG * 9}, made_set(ImageSpec(shape=(3, 224, 224)))),
        "hostile": render_page(hostile, made_set()),
        "real": render_page(plain_report(synthesis=None), None),
        "comparison": render_comparison({f"runs/{LONG}/{run}": plain_report(seed=run) for run in range(4)}),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def open_page(browser: playwright.Browser, path: Path, width: int = 1200, **options: object) -> playwright.Page:
    """The page, with everything it says and asks for in `page.said` and `page.asked`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    return page


def save_picture(page: playwright.Page, folder: Path, name: str) -> Path:
    path = Path(os.environ.get("DFFG_SCREENSHOTS", folder)) / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


KINDS = ["report", "long", "hostile", "real", "comparison"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (375, "light")])
def test_pages_render_without_errors_requests_or_horizontal_scrolling(browser, pages, tmp_path, kind, width, scheme):
    page = open_page(browser, pages[kind], width, color_scheme=scheme)
    picture = save_picture(page, tmp_path, f"{kind}-{width}-{scheme}")
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [pages[kind].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.title() != "owned"
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough(browser, pages, kind, scheme):
    page = open_page(browser, pages[kind], color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(browser, pages, scheme):
    page = open_page(browser, pages["report"], color_scheme=scheme)
    other = {"light": "dark", "dark": "light"}[scheme]
    colors = {scheme: background(page)}
    page.emulate_media(color_scheme=other)
    colors[other] = background(page)
    assert colors == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
    assert page.locator("button.theme").inner_text() == f"{scheme.capitalize()} theme"
    page.locator("button.theme").press("Enter")
    assert background(page) == colors[scheme]
    assert page.locator("button.theme").inner_text() == f"{other.capitalize()} theme"
    page.emulate_media(color_scheme=scheme)
    assert background(page) == colors[scheme]


def column(page, place):
    return page.locator(f"table.sortable tbody tr > :nth-child({place})").all_inner_texts()


def test_layers_are_sorted_by_mouse_and_by_keyboard(browser, pages):
    page = open_page(browser, pages["report"])
    place, name, noise = 1, 2, 3
    heads = page.locator("table.sortable thead th")
    assert heads.nth(noise - 1).get_attribute("aria-sort") == "ascending"
    ratios = [float(text) for text in column(page, noise)[:-1]]
    assert ratios == sorted(ratios)
    heads.nth(noise - 1).locator("button").click()
    assert column(page, noise) == [*(f"{ratio:.1f}" for ratio in sorted(ratios, reverse=True)), "\u2013"]
    assert heads.nth(noise - 1).get_attribute("aria-sort") == "descending"
    heads.nth(noise - 1).locator("button").click()
    assert column(page, noise) == [*(f"{ratio:.1f}" for ratio in sorted(ratios)), "\u2013"]
    heads.nth(place - 1).locator("button").focus()
    page.keyboard.press("Enter")
    assert column(page, place) == [str(number) for number in range(1, 13)]
    assert column(page, name) == [f"blocks.{index}.conv" for index in range(12)]
    page.keyboard.press("Space")
    assert column(page, place) == [str(number) for number in range(12, 0, -1)]
    assert [heads.nth(index).get_attribute("aria-sort") for index in range(3)] == ["descending", None, None]
    heads.nth(name - 1).locator("button").click()
    assert column(page, name) == [f"blocks.{index}.conv" for index in range(12)]


def test_ranges_are_sorted_by_their_width(browser, pages):
    page = open_page(browser, pages["report"])
    page.locator("table.sortable thead th").nth(5).locator("button").click()
    assert column(page, 6)[:3] == ["0 to 2.5", "-0.5 to 3.5", "-1 to 4.5"]
    assert page.said == []


def test_the_command_is_copied(browser, pages):
    page = open_page(browser, pages["report"], permissions=["clipboard-read", "clipboard-write"])
    button = page.locator("button.copy")
    button.click()
    playwright.expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "dffg quantize demo:network --out out"


def test_without_scripts_everything_can_be_read_and_no_button_is_in_the_way(browser, pages):
    page = open_page(browser, pages["report"], java_script_enabled=False)
    assert page.locator("button.theme").is_hidden()
    assert page.locator("button.copy").is_hidden()
    assert page.locator("svg").count() == 3


@pytest.mark.parametrize("width", [1200, 375])
def test_ranges_stand_below_the_noise_of_the_same_layers(browser, pages, width):
    page = open_page(browser, pages["report"], width)
    above, below = (page.get_by_role("img", name=name).bounding_box() for name in ("Signal to noise", "Input ranges"))
    assert (below["x"], below["width"]) == (above["x"], above["width"])
    assert below["y"] > above["y"] + above["height"]


def test_paper_is_light_and_shows_everything(browser, pages, tmp_path):
    page = open_page(browser, pages["report"], color_scheme="dark")
    page.locator("button.theme").click()
    page.locator("button.theme").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    save_picture(page, tmp_path, "report-print")
    assert background(page) == "rgb(255, 255, 255)"
    assert page.locator("details table").first.is_visible()
    assert page.locator("button.theme").is_hidden()
    assert page.pdf()[:5] == b"%PDF-"
