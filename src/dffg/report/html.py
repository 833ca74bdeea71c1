"""The report as a page: one file without anything to fetch, for people, beside `report.json`, which is for programs."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from rich.filesize import decimal

from dffg.config import Budget
from dffg.errors import InputError
from dffg.images import SyntheticSet
from dffg.report.charts import comparison_chart, loss_chart, range_chart, sqnr_chart
from dffg.report.comparison import differences, run_of
from dffg.report.facts import (
    Plain,
    counted,
    images_used,
    is_verified,
    key_facts,
    left_in_float,
    number,
    range_by_layer,
    sqnr_by_layer,
    verdict,
    worst_first,
    written,
)
from dffg.report.gallery import drawable, gallery
from dffg.report.result import IMAGES_FILE, PAGE_FILE, REPORT_FILE, read_report
from dffg.report.terminal import describe_widths
from dffg.spec import shape_text
from dffg.storage.output import file_hash, staged_directory, staged_file


def render_page(report: Plain, made: SyntheticSet | None) -> str:
    """The page of one result. made: the synthetic images; None where calibration used real ones, which stay unseen."""
    drawn = drawable(made) if made else None
    return _page(
        "report.html",
        report=report,
        verdict=verdict(report),
        verified=is_verified(report),
        facts=key_facts(report),
        images_used=images_used(report["images"]),
        layers=worst_first(report["layers"]),
        sqnr_chart=sqnr_chart(sqnr_by_layer(report)),
        range_chart=range_chart(range_by_layer(report), sqnr_by_layer(report)),
        loss_chart=loss_chart(made.losses, made.config.burn_in) if made else None,
        made=made,
        drawn=drawn,
        gallery=gallery(drawn) if drawn else None,
        input_shape=_shape(report["input"]),
        frontier=_frontier(report.get("mixed")),
        left_in_float=left_in_float(report),
        seconds={stage: round(value, 1) for stage, value in report["seconds"].items()},
        # A page cannot hold its own hash.
        files={name: digest for name, digest in report["files"].items() if name != PAGE_FILE},
    )


def render_comparison(reports: dict[str, Plain]) -> str:
    """The page of several results, by their names."""
    layers = {name: sqnr_by_layer(report) for name, report in reports.items()}
    return _page(
        "comparison.html",
        runs=[run_of(name, report) for name, report in reports.items()],
        chart=comparison_chart(layers),
        differences=differences(list(reports.values())),
    )


def rebuild(directory: Path) -> Plain:
    """Write the page of a result anew from its report and its images, and its hash into that report; return it.

    Raises InputError where there is no report, or one of another version.
    """
    report = read_report(directory / REPORT_FILE)
    try:
        made = SyntheticSet.load(directory / IMAGES_FILE) if report["synthesis"] else None
        page = render_page(report, made)
        with staged_directory(directory, commit_mark=REPORT_FILE) as staging:
            (staging / PAGE_FILE).write_text(page, encoding="utf-8")
            report["files"][PAGE_FILE] = file_hash(staging / PAGE_FILE)
            (staging / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise InputError(f"{directory / REPORT_FILE} is not a report of this version of dffg: {error}.") from error
    return report


def compare(reports: dict[str, Plain], out: Path) -> None:
    """Write the page that compares these results, by their names."""
    with staged_file(out) as staging:
        staging.write_text(render_comparison(reports), encoding="utf-8")


def _shape(described: Plain) -> str:
    return shape_text(part["shape"] for part in described.get("inputs", [described]))


def _frontier(mixed: Plain | None) -> list[dict[str, Any]]:
    """Widths by budget, the chosen ones marked and in their place."""
    if mixed is None:
        return []
    points = [*((point, False) for point in mixed["frontier"]), (mixed["chosen"], True)]
    budget = Budget(**mixed["budget"])
    return [
        {
            "budget": str(replace(budget, amount=point["cost"])),
            "sensitivity": point["sensitivity"],
            "widths": describe_widths(point["widths"]["weights"].values()),
            "chosen": chosen,
        }
        for point, chosen in sorted(points, key=lambda entry: entry[0]["cost"])
    ]


def _page(template: str, **content: Any) -> str:
    environment = _environment()
    script = environment.get_template("script.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The page runs this script and no other, whatever a name of a layer may hold.
    return environment.get_template(template).render(**content, script=Markup(script), script_hash=f"sha256-{digest}")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dffg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "written": written, "size": decimal, "words": _words, "counted": counted}
    return environment


def _words(name: str) -> str:
    return name.replace("_", " ")
