"""`dffg batch`: many networks by many schemes, what fails and what is done already."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dffg.cli.jobs_file import Job, read_jobs
from dffg.cli.quantize import quantize
from dffg.cli.recipe_file import recipe_parameters
from dffg.errors import InputError
from tests.cli import test_cli
from tests.cli.test_cli import MODULE, refused, run, tree

here = test_cli.here  # the fixture
KNOWN = dict(recipe_parameters(quantize))
OPTIONS = "options: {input: 3x16x16, images: 8, steps: 4, batch-size: 4}\n"


def jobs_of(folder: Path, text: str) -> list[Job]:
    (folder / "jobs.yaml").write_text(text)
    return read_jobs(folder / "jobs.yaml", KNOWN)


def test_every_model_goes_by_every_scheme(tmp_path: Path) -> None:
    text = """
options: {images: 8, bits: W8A8}
models:
  - demo:mobilenet_v2
  - {name: mine, model: nets/net.pt2, weights: a.pth, images: 4}
schemes: [W8A8, {name: four, bits: W4A4, images: 2, first-last-bits: 8}]
jobs:
  - {model: /elsewhere/net.onnx, mean: [0.5, 0.25]}
  - {name: last, model: a.b:net, bits: W6A6}
"""
    found = {job.name: job.values for job in jobs_of(tmp_path, text)}
    four, mine = (
        {"bits": "W4A4", "first_last_bits": "8"},
        {"model": f"{tmp_path}/nets/net.pt2", "weights": f"{tmp_path}/a.pth"},
    )
    assert found == {
        "mobilenet_v2-W8A8": {"model": "demo:mobilenet_v2", "count": "8", "bits": "W8A8"},
        "mobilenet_v2-four": {"model": "demo:mobilenet_v2", "count": "2", **four},
        "mine-W8A8": {**mine, "count": "4", "bits": "W8A8"},
        "mine-four": {**mine, "count": "2", **four},
        "net.onnx-W8A8": {"model": "/elsewhere/net.onnx", "count": "8", "bits": "W8A8", "mean": "0.5,0.25"},
        "last": {"model": "a.b:net", "count": "8", "bits": "W6A6"},
    }


def test_a_job_is_what_the_command_line_says(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path, "jobs: [{model: demo:x, images: 8, first_last_bits: 8}]")
    assert job.arguments(KNOWN) == ["demo:x", "--images", "8", "--first-last-bits", "8"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("models: [a:b]\nmodel: [c:d]", 2, "there is no 'model' here"),
        ("models: [a:b]\nmodels: [c:d]", 2, "models stands here a second time"),
        ("models:\n  - a:b\n  - {model: c:d, imags: 3}", 3, "did you mean images?"),
        ("models:\n  - a:b\n  - {model: c:d, images: few}", 3, "images: 'few' is not a valid integer"),
        ("models:\n  - a:b\n  - {images: 3}", 3, "this has no model"),
        ("models:\n  - [a:b]", 2, "a recipe consists of lines"),
        ("models:\n  a:b", 2, "this is not a list"),
        ("models:\n  - !!python/name:os.system", 2, "the tag !!python/name:os.system is not allowed"),
        ("models:\n  - {model: a:b, mean: !x 1}", 2, "the tag !x is not allowed"),
        ("models:\n  - {model: a:b, out: c}", 2, "out is set by dffg batch"),
        ("models:\n  - {model: a:b, ray: auto}", 2, "a recipe has no option 'ray'"),
        ("models:\n  - {model: a:b, name: ../up}", 2, "name is not one word"),
        ("models:\n  - {model: a:b, name: [x]}", 2, "name is not one word"),
        (
            "jobs: [a:b]\nschemes: [W8A8]",
            2,
            "schemes go with models, and there are none here; give models:, or every job",
        ),
        ("models: [a:b]\noptions: {name: x}", 2, "only an entry of models, schemes or jobs has a name"),
        ("models:\n  - a:b\n  - c:b", 3, "is named b, too"),
        ("models:\n  - a:b\n  - [", 3, "this is not YAML"),
        ("- a:b", 1, "a recipe consists of lines"),
        ("models:\n  - &a [*a]", 2, "a recipe consists of lines"),
    ],
)
def test_what_cannot_be_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(InputError) as raised:
        jobs_of(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'jobs.yaml'}, line {line}: ")
    assert says in str(raised.value)


def test_too_little_and_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no jobs"):
        jobs_of(tmp_path, "options: {images: 8}")
    with pytest.raises(InputError, match="more than 10000 jobs"):
        jobs_of(tmp_path, f"models: [{', '.join(['a:b'] * 101)}]\nschemes: [{', '.join(['W8A8'] * 100)}]")
    with pytest.raises(InputError, match="larger than 1 MB"):
        jobs_of(tmp_path, "#" * 1_000_001)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    refused(run("batch", tmp_path / "no.yaml", "--out", tmp_path), "no.yaml cannot be read: No such file or directory;")
    refused(run("batch", tmp_path, "--out", tmp_path), "cannot be read: Is a directory; give a YAML file")
    (tmp_path / "jobs.yaml").write_bytes(b"\x00")
    refused(run("batch", tmp_path / "jobs.yaml", "--out", tmp_path), "jobs.yaml is not a YAML file: it is not text")


# Whole batches


@pytest.fixture(scope="module")
def done(here: Path) -> test_cli.Ended:
    """Four jobs, of which one network cannot be quantized."""
    text = f"{OPTIONS}models: ['{MODULE}:tiny', '{MODULE}:no_norm']\nschemes: [W8A8, {{bits: W6A6, recipe: fast}}]\n"
    (here / "jobs.yaml").write_text(text)
    return run("batch", "jobs.yaml", "--out", "many")


def test_failures_are_listed_and_the_rest_is_finished(done: test_cli.Ended, here: Path) -> None:
    assert done.code == 2
    assert done.err.endswith("dffg: 2 of 4 jobs failed; the same command tries them again.\n")
    assert sorted(path.name for path in (here / "many").iterdir()) == [
        "batch.html",
        "batch.json",
        "tiny-W6A6",
        "tiny-W8A8",
    ]
    found = json.loads((here / "many" / "batch.json").read_text())
    assert [(entry["name"], entry["scheme"]) for entry in found["runs"]] == [
        ("tiny-W8A8", "W8A8"),
        ("tiny-W6A6", "W6A6"),
    ]
    assert [entry["name"] for entry in found["failures"]] == ["no_norm-W8A8", "no_norm-W6A6"]
    assert "the network has no BatchNorm" in found["failures"][0]["error"]
    assert "tiny-W6A6" in done.out
    assert "failed: no_norm-W8A8" in done.out


def test_failures_are_told_where_nothing_else_is(done: test_cli.Ended, here: Path) -> None:
    again = run("batch", "jobs.yaml", "--out", "many", "--quiet")
    assert again.out == ""
    first, second, last = again.err.splitlines()
    assert first.startswith("dffg: no_norm-W8A8: the network has no BatchNorm")
    assert second.startswith("dffg: no_norm-W6A6: the network has no BatchNorm")
    assert last == "dffg: 2 of 4 jobs failed; the same command tries them again."


def test_results_that_are_not_verified_are_told(done: test_cli.Ended, here: Path, tmp_path: Path) -> None:
    (here / "good.yaml").write_text(f"{OPTIONS}models: ['{MODULE}:tiny']\nschemes: [W8A8]\n")
    assert run("batch", "good.yaml", "--out", tmp_path / "good").code == 0
    report = next((tmp_path / "good").glob("*/report.json"))
    plain = json.loads(report.read_text())
    plain["agreement"]["broken"] = "it answers the same to everything"
    report.write_text(json.dumps(plain))
    again = run("batch", "good.yaml", "--out", tmp_path / "good", "--quiet")
    assert (again.code, again.out) == (3, "")
    name = report.parent.name
    assert again.err == f"dffg: {name}: verification failed; see {report.parent / 'report.html'}.\n"


def test_a_job_whose_code_ends_the_program_ends_alone(here: Path, tmp_path: Path) -> None:
    (here / "ending.yaml").write_text(f"{OPTIONS}models: ['{MODULE}:ends', '{MODULE}:tiny']\nschemes: [W8A8]\n")
    ended = run("batch", "ending.yaml", "--out", tmp_path / "ended", "--json")
    assert ended.code == 2
    found = json.loads(ended.out)
    assert [len(found["runs"]), len(found["failures"])] == [1, 1]
    assert "ends the program (sys.exit(0))" in found["failures"][0]["error"]


def test_a_file_in_place_of_the_directory_is_refused_before_any_work(here: Path) -> None:
    (here / "good.yaml").write_text(f"{OPTIONS}models: ['{MODULE}:tiny']\nschemes: [W8A8]\n")
    refused(run("batch", "good.yaml", "--out", "good.yaml"), "--out good.yaml is a file; give a directory")


def test_a_job_is_the_command_of_its_report(done: test_cli.Ended, here: Path) -> None:
    command = json.loads((here / "many" / "tiny-W6A6" / "report.json").read_text())["command"]
    assert command.startswith("dffg quantize ")
    assert "--force" not in command
    alone = run(*command.replace("many/tiny-W6A6", "alone").split()[1:])
    assert alone.code == 0
    for name in ("model.onnx", "images.npz", "parameters.npz"):
        assert (here / "alone" / name).read_bytes() == (here / "many" / "tiny-W6A6" / name).read_bytes()


def test_only_what_is_missing_is_made_again(done: test_cli.Ended, here: Path) -> None:
    shutil.rmtree(here / "many" / "tiny-W8A8")
    before = tree(here / "many" / "tiny-W6A6")
    again = run("batch", "jobs.yaml", "--out", str(here / "many"), "--json")
    assert again.code == 2
    assert [entry["name"] for entry in json.loads(again.out)["runs"]] == ["tiny-W8A8", "tiny-W6A6"]
    assert tree(here / "many" / "tiny-W6A6") == before


def test_a_network_that_was_saved_again_is_quantized_again(here: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    namespace: dict[str, object] = {}
    exec((here / f"{MODULE}.py").read_text(), namespace)
    torch.save(namespace["tiny"]().state_dict(), weights)  # type: ignore[operator]
    text = f"{OPTIONS}models: [{{model: '{MODULE}:tiny', weights: {weights}}}]\nschemes: [W8A8]\n"
    (here / "weights.yaml").write_text(text)
    out = tmp_path / "weighed"
    assert run("batch", "weights.yaml", "--out", out).code == 0
    (report,) = out.glob("*/report.json")
    first = report.stat().st_mtime_ns
    assert run("batch", "weights.yaml", "--out", out).code == 0
    assert report.stat().st_mtime_ns == first
    os.utime(weights, ns=(first + 10**9, first + 10**9))
    assert run("batch", "weights.yaml", "--out", out).code == 0
    assert report.stat().st_mtime_ns != first


def test_another_job_of_that_name_is_refused_before_any_work(done: test_cli.Ended, here: Path) -> None:
    (here / "other.yaml").write_text(
        f"{OPTIONS}models: ['{MODULE}:other', '{MODULE}:tiny']\nschemes: [{{bits: W8A8, seed: 1}}]"
    )
    before = tree(here / "many")
    refused(run("batch", "other.yaml", "--out", "many"), "holds the result of another job", "--force")
    assert tree(here / "many") == before


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (OPTIONS, ("--trust",)),
        ("options: {batch-size: 4, steps: 4, images: 8, input: 3x16x16}\n", ()),
    ],
    ids=["trusted", "in another order"],
)
def test_what_is_meant_the_same_is_not_another_job(
    done: test_cli.Ended, here: Path, options: str, arguments: tuple[str, ...]
) -> None:
    (here / "same.yaml").write_text(f"{options}models: ['{MODULE}:tiny']\nschemes: [{{recipe: fast, bits: W6A6}}]\n")
    before = tree(here / "many" / "tiny-W6A6")
    ended = run("batch", "same.yaml", "--out", "many", *arguments)
    assert (ended.code, ended.err) == (0, "")
    assert tree(here / "many" / "tiny-W6A6") == before


@pytest.mark.parametrize("command", [None, "", 3, "dffg quantize 'half", "dffg.quantize(model, 'many')", "left out"])
def test_a_report_that_does_not_say_its_command_is_that_of_another_job(
    done: test_cli.Ended, here: Path, tmp_path: Path, command: object
) -> None:
    shutil.copytree(here / "many" / "tiny-W6A6", tmp_path / "tiny-W6A6")
    file = tmp_path / "tiny-W6A6" / "report.json"
    report = json.loads(file.read_text()) | {"command": command}
    if command == "left out":
        del report["command"]
    file.write_text(json.dumps(report))
    (here / "one.yaml").write_text(f"{OPTIONS}models: ['{MODULE}:tiny']\nschemes: [{{bits: W6A6, recipe: fast}}]\n")
    refused(run("batch", "one.yaml", "--out", tmp_path), "tiny-W6A6 holds the result of another job: ", "--force")


def test_impossible_options_are_refused_with_the_line_before_any_work(here: Path) -> None:
    (here / "wrong.yaml").write_text(f"{OPTIONS}models:\n - '{MODULE}:tiny'\n - {{model: '{MODULE}:other', steps: 0}}")
    refused(run("batch", "wrong.yaml", "--out", "never"), "wrong.yaml, line 4: --steps is 0; it must be at least 1")
    assert not (here / "never").exists()


def test_jobs_that_are_interrupted_say_how_many_are_done(
    done: test_cli.Ended, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(here / "many" / "tiny-W8A8", here / "stopped" / "tiny-W8A8")

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dffg.cli.batch.run_job", interrupted)
    ended = run("batch", "jobs.yaml", "--out", "stopped")
    assert ended.code == 130
    assert "interrupted; 1 of 4 jobs are done, and the same command goes on with the others" in ended.err
    ended = run("batch", "jobs.yaml", "--out", "stopped", "--force")
    assert ended.code == 130
    assert "interrupted; the same command makes every result anew, and without --force those that are" in ended.err


def test_jobs_run_as_tasks_of_ray(done: test_cli.Ended, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is missing; pip install 'dffg[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(test_cli.ROOT))  # the networks of these tests are made by others
    ended = run("batch", "jobs.yaml", "--out", "by-ray", "--ray", "--workers", "2")
    assert ended.code == 2, ended.err
    assert "the network has no BatchNorm" in ended.out
    for scheme in ("W8A8", "W6A6"):
        for name in ("model.onnx", "images.npz", "parameters.npz"):
            paths = [here / place / f"tiny-{scheme}" / name for place in ("many", "by-ray")]
            assert paths[0].read_bytes() == paths[1].read_bytes()
