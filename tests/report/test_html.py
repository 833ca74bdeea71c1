"""The page as text; `test_browser.py` looks at it in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dffg.config import Budget
from dffg.errors import InputError
from dffg.quant.allocation import Allocation
from dffg.quant.mixed import MixedPrecision
from dffg.quant.widths import BitWidths
from dffg.report.html import compare, rebuild, render_comparison, render_page
from dffg.spec import ImageSpec, JointSpec
from dffg.storage.output import file_hash
from tests.report.pages import HOSTILE, made_set, plain_report
from tests.report.test_result import RESULT

VOID = {"meta", "link", "img", "br", "path", "rect", "use"}


class Page(HTMLParser):
    """Elements with their attributes, and the text below every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def result_directory(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    result = dataclasses.replace(RESULT, layers=(), files={"model.onnx": "00"}, **changes)
    result.save(folder / "report.json")
    made_set().save(folder / "images.npz")
    return folder


def test_the_page_says_what_the_report_says():
    page = Page(render_page(plain_report(problems=["something is wrong"]), made_set()))
    for expected in (
        "demo:network W8A8",
        "Verified in onnxruntime: 4.0 times smaller",
        "97.5%",
        "not task accuracy, which only labelled data can tell.",
        "something is wrong",
        "a note",
        "64 synthetic images from 1 chain of 16 passes through the network.",
        "chain 1, image 2",
        "step 7",
        "blocks.3.conv",
        "-1.5 to 5.5",
        "hardswish (hardswish)",
        "dffg quantize demo:network --out out",
        "dffg 0.1.0, seed 7",
        "burn in 12",
        "bias correction analytic",
        "model.onnx 00",
    ):
        assert expected in page.words, expected


def test_hostile_names_are_only_text():
    layers = [plain_report()["layers"][0] | {"name": HOSTILE}]
    hostile = {"model": HOSTILE, "scheme": HOSTILE, "layers": layers, "notes": [HOSTILE], "problems": [HOSTILE]}
    hostile |= {"float_reasons": {HOSTILE: HOSTILE}, "command": HOSTILE, "path": HOSTILE, "files": {HOSTILE: HOSTILE}}
    plain = plain_report(layers=plain_report()["layers"][:1], problems=["p"], files={"a": "b"})
    for text in (
        render_page(plain_report(**hostile), made_set()),
        render_comparison({HOSTILE: plain_report(**hostile)}),
    ):
        page = Page(text)
        assert len(page.of("script")) == 1
        assert not [attributes for attributes in page.of("img") if not str(attributes["src"]).startswith("data:")]
        assert HOSTILE in "".join(page.text)
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    attacked, honest = (Page(render_page(report, made_set())) for report in (plain_report(**hostile), plain))
    assert [tag for tag, _ in attacked.elements] == [tag for tag, _ in honest.elements]


def test_nothing_is_fetched_and_only_the_own_script_may_run():
    text = render_page(plain_report(), made_set())
    page = Page(text)
    (policy,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href", "srcset") if name in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", text)


def test_headings_are_in_order_and_tables_and_figures_are_described():
    page = Page(render_page(plain_report(), made_set()))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(heading["scope"] in ("col", "row") for heading in page.of("th"))
    assert all(picture["alt"] for picture in page.of("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.of("svg"))
    assert len(page.of("table")) == len(page.of("caption"))
    names = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    assert all(section["aria-labelledby"] in names for section in page.of("section"))


def test_a_missing_figure_is_last_and_a_dash():
    text = render_page(plain_report(), made_set())
    rows = re.findall(
        r"<code>(blocks\.\d+\.conv)</code></th>\s*<td class=\"number\" data-value=\"(.*?)\">(.*?)</td>", text
    )
    assert len(rows) == 12
    assert rows[-1] == ("blocks.11.conv", "", "\u2013")
    values = [float(value) for _, value, _ in rows[:-1]]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("report", "made", "says"),
    [
        (plain_report(synthesis=None), None, "Real images are not shown here."),
        (plain_report(), made_set(ImageSpec(shape=(5, 8, 8))), "cannot be drawn"),
        (plain_report(), made_set(ImageSpec(shape=(1, 8, 8), bounds=(-130.0, 30.0))), "from black, -130, to white, 30"),
        (plain_report(), dataclasses.replace(made_set(), losses=()), "No losses were recorded with these images."),
        (plain_report(float_operations=[], float_reasons={}), made_set(), "Nothing: every operation computes with int"),
        (plain_report(command=None), made_set(), "without the command that made it"),
    ],
)
def test_what_is_not_there_is_said(report, made, says):
    assert says in Page(render_page(report, made)).words


def test_what_is_left_in_float_stands_below_its_reason():
    reasons = {"silu (silu)": "no kernel", "conv2d_9 (conv2d)": "output", "silu_1 (silu)": "no kernel"}
    words = Page(render_page(plain_report(float_reasons=reasons), made_set())).words
    assert "No kernel silu (silu) , silu_1 (silu) Output conv2d_9 (conv2d)" in words


def test_an_earlier_report_has_one_reason_for_all():
    report = plain_report(float_operations=["silu (silu)", "gelu (gelu)"])
    del report["float_reasons"]
    words = Page(render_page(report, made_set())).words
    assert "No integer kernel in onnxruntime as they are used here silu (silu) , gelu (gelu)" in words


def test_of_several_inputs_the_page_says_which_is_drawn():
    joint = JointSpec.of([ImageSpec(shape=(5,)), made_set().spec])
    inputs = joint.join([np.zeros((len(made_set()), 5), np.float32), made_set().inputs])
    report = plain_report(input=json.loads(json.dumps(dataclasses.asdict(joint))))
    page = Page(render_page(report, dataclasses.replace(made_set(), spec=joint, inputs=inputs)))
    assert "of inputs of shape 5/3x8x8 the one of 3x8x8" in page.words


def test_a_report_without_the_newer_fields_is_shown():
    older = plain_report()
    for field in ("command", "mixed"):
        del older[field]
    for layer in older["layers"]:
        del layer["input_range"]
    assert "An earlier version of dffg" in Page(render_page(older, made_set())).words


def test_mixed_widths_are_shown_with_the_chosen_one_among_the_budgets():
    def point(cost, **bits):
        return Allocation(cost=cost, sensitivity=cost / 8, widths=BitWidths(weights=bits, activations={}))

    mixed = MixedPrecision(
        budget=Budget.parse("size=0.5x"),
        widths=BitWidths(weights={"a": 4, "b": 8}, activations={}),
        chosen=point(0.45, a=4, b=8),
        frontier=(point(0.25, a=2, b=2), point(1.0, a=8, b=8)),
    )
    report = plain_report(mixed=dataclasses.replace(RESULT, mixed=mixed).to_dict()["mixed"])
    words = Page(render_page(report, made_set())).words
    expected = [
        "size=0.25x 0.031 2 bits in 2",
        "size=0.45x (chosen) 0.056 4 bits in 1, 8 bits in 1",
        "size=1x 0.12 8 bits in 2",
    ]
    places = [words.index(row) for row in expected]
    assert places == sorted(places)


def test_a_page_stays_small():
    spec = ImageSpec(shape=(3, 224, 224))
    made = made_set(spec, chains=12, size=16)
    made.inputs[:] = np.random.default_rng(0).random((1, *spec.shape), dtype=np.float32)
    layers = [plain_report()["layers"][0] | {"name": f"stages.{index}.convolution"} for index in range(300)]
    assert len(render_page(plain_report(layers=layers), made).encode()) < 1_500_000


def test_a_rebuilt_page_is_the_same_and_the_report_holds_its_hash(tmp_path):
    out = result_directory(tmp_path / "out")
    first = rebuild(out)
    page = (out / "report.html").read_bytes()
    assert first == json.loads((out / "report.json").read_text())
    assert first["files"] == {"model.onnx": "00", "report.html": file_hash(out / "report.html")}
    assert rebuild(out) == first
    assert (out / "report.html").read_bytes() == page
    assert sorted(path.name for path in out.iterdir()) == ["images.npz", "report.html", "report.json"]


def test_what_is_no_result_is_refused_and_stays_as_it_is(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        rebuild(tmp_path)
    out = result_directory(tmp_path / "out")
    plain = json.loads((out / "report.json").read_text())
    for broken in (plain | {"schema_version": 99}, {key: plain[key] for key in ("schema_version", "synthesis")}):
        text = json.dumps(broken)
        (out / "report.json").write_text(text)
        with pytest.raises(InputError, match="not a report of this version"):
            rebuild(out)
        assert (out / "report.json").read_text() == text
        assert not (out / "report.html").exists()


def test_a_comparison_has_a_row_for_every_result_and_their_differences(tmp_path):
    reports = {"first": plain_report(), "second": plain_report(seed=8, version="0.2.0", model="other")}
    compare(reports, tmp_path / "compare.html")
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    for expected in ("2 results", "first demo:network", "second other", "3 of 3", "97.5%", "15.5", "dffg 0.1.0 0.2.0"):
        assert expected in page.words, expected
    assert len(page.of("svg")) == 1
    same = Page(render_comparison({"first": plain_report(), "second": plain_report()}))
    assert "All options, versions and machines are the same." in same.words
