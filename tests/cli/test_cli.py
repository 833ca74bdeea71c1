"""The command line from outside: what it prints, what it exits with and what it leaves on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from dffg.cli.main import main
from dffg.export.verification import SimulationMatch
from dffg.images import SyntheticSet
from dffg.spec import ImageSpec

NETWORKS = """
import torch
from torch import nn
from tests.networks import randomize, small_conv


def tiny():
    return randomize(small_conv(classes=4))


def features():
    return randomize(small_conv(channels=1, classes=4))


def no_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def no_statistics():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))


def nan_mean():
    model = tiny()
    model[4].running_mean[3] = float("nan")
    return model


def nan_variance():
    model = tiny()
    model[4].running_var[3] = float("nan")
    return model


def other():
    model = tiny()
    model[8] = nn.Linear(model[8].in_features, 7)
    return model


def negative_variance():
    model = tiny()
    model[4].running_var[3] = -1.0
    return model


def infinite_mean():
    model = tiny()
    model[4].running_mean[3] = float("inf")
    return model


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = tiny()

    def forward(self, x):
        return self.layers(x) if x.sum() > 1 else self.layers(-x)


def ends():
    raise SystemExit(0)


class Ends(nn.Module):
    def forward(self, x):
        raise SystemExit(0)


def speaks():
    print("loading")
    return tiny()


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = tiny()

    def forward(self, left, right):
        return self.layers(left + right)

"""
MODULE = "dffg_cli_networks"
TINY = (f"{MODULE}:tiny", "--input", "3x16x16")
QUICK = ("--images", "8", "--steps", "4")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    command = ["dffg", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


def tiny_network(folder: Path) -> object:
    """The network `tiny` of the module that the tests write into their folder."""
    namespace: dict[str, object] = {}
    exec((folder / f"{MODULE}.py").read_text(), namespace)
    return namespace["tiny"]()


def python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A current directory with the networks of the user."""
    folder = tmp_path_factory.mktemp("here")
    (folder / f"{MODULE}.py").write_text(NETWORKS)
    with contextlib.chdir(folder):
        yield folder
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def labelled(here):
    """Labelled pictures as an .npz."""
    generator = np.random.default_rng(0)
    path = here / "data.npz"
    np.savez(path, images=generator.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8), labels=np.arange(40) % 4)
    return path


@pytest.fixture(scope="module")
def finished(here):
    """One whole run with the defaults of the command line, and where it wrote."""
    return run("quantize", *TINY, "--out", here / "result", *QUICK), here / "result"


# A whole run


def test_quantize_writes_network_images_and_report(finished):
    ended, out = finished
    assert ended.code == 0, ended.err
    files = ["images.npz", "model.onnx", "parameters.npz", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == [*files, "report.json"]
    report = json.loads((out / "report.json").read_text())
    for name in files:
        assert report["files"][name] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    assert report["size_bytes"]["quantized"] == (out / "model.onnx").stat().st_size


def test_report_of_a_run_holds_what_was_asked_for(finished):
    report = json.loads((finished[1] / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["model"] == f"{MODULE}:tiny"
    assert report["scheme"] == "W8A8"
    assert report["seed"] == 0
    assert report["input"]["shape"] == [3, 16, 16]
    assert report["images"] == {"source": "synthetic images", "count": 8, "chains": 1, "steps": 4, "passes": 4}
    assert report["synthesis"]["steps"] == 4
    assert report["accuracy"] is None
    assert report["kernels"]["integer"] == len(report["layers"]) == 3
    assert report["kernels"]["float"] == 0
    assert report["simulation_match"]["max_abs_difference_in_steps"] <= 1
    assert [layer["name"] for layer in report["layers"]] == ["0", "3", "8"]
    assert report["peak_memory_bytes"] > 0
    stages = report["seconds"]
    assert stages.pop("learning") == 0
    assert all(value > 0 for value in stages.values())
    assert stages["total"] >= sum(value for name, value in stages.items() if name != "total")
    assert any("assuming pixels in [0, 1]" in note for note in report["notes"])


def test_a_run_says_what_was_typed(finished, here):
    report = json.loads((finished[1] / "report.json").read_text())
    assert shlex.split(report["command"]) == ["dffg", "quantize", *TINY, "--out", str(here / "result"), *QUICK]


def test_images_of_a_run_can_be_loaded(finished):
    made = SyntheticSet.load(finished[1] / "images.npz")
    assert [len(losses) for losses in made.losses] == [4]
    assert made.inputs.shape == (8, 3, 16, 16)
    assert 0 <= made.inputs.min() < made.inputs.max() <= 1
    assert (made.config.steps, made.config.count) == (4, 8)


def test_table_of_a_run_is_printed_once_and_without_progress(finished):
    ended, out = finished
    assert "network" in ended.out
    assert "written to" in ended.out
    assert str(out) in ended.out.replace("\n", "").replace(" ", "")
    assert "not task accuracy" in " ".join(ended.out.split())
    assert "no --mean, --std or --bounds were given" in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def overwritten(here, labelled):
    """A second run over an earlier result, with accuracy and JSON."""
    out = here / "again"
    out.mkdir()
    for name in ("report.json", "notes.txt"):
        (out / name).write_text("old")
    options = ("--json", "--force", "--seed", "5", "--mean", "0.5", "--std", "0.25", "--eval", labelled)
    return run("quantize", *TINY, "--out", out, *QUICK, *options), out


def test_json_alone_is_on_standard_output(overwritten):
    ended, out = overwritten
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == json.loads((out / "report.json").read_text())


def test_force_keeps_the_files_of_others(overwritten):
    assert (overwritten[1] / "notes.txt").read_text() == "old"
    assert len(tree(overwritten[1])) == 6


def test_normalization_given_is_reported(overwritten):
    report = json.loads(overwritten[0].out)
    assert (report["input"]["mean"], report["input"]["std"]) == ([0.5], [0.25])
    assert report["input"]["source"] == "the command line"
    assert "assuming" not in overwritten[0].err
    assert report["seed"] == 5


def outputs_of(path: Path, inputs: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]


def test_accuracy_of_a_run_is_that_of_its_file(overwritten, labelled, here):
    ended, out = overwritten
    accuracy = json.loads(ended.out)["accuracy"]
    data = np.load(labelled)
    inputs = ((data["images"] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).astype(np.float32)
    right = outputs_of(out / "model.onnx", inputs).argmax(1) == data["labels"]
    with torch.no_grad():
        float_right = tiny_network(here)(torch.from_numpy(inputs)).argmax(1).numpy() == data["labels"]
    assert accuracy["quantized_top1"] == pytest.approx(100 * right.mean())
    assert accuracy["float_top1"] == pytest.approx(100 * float_right.mean())
    assert accuracy["drop_points"] == pytest.approx(100 * (float_right.mean() - right.mean()))
    assert accuracy["count"] == 40


def test_evaluate_measures_the_accuracy_of_a_file(overwritten, labelled):
    out = overwritten[1]
    ended = run("evaluate", out / "model.onnx", "--data", labelled, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["top1"] == pytest.approx(json.loads(overwritten[0].out)["accuracy"]["quantized_top1"])
    assert json.loads(ended.out)["count"] == 40
    text = run("evaluate", out / "model.onnx", "--data", labelled)
    assert text.out == f"top-1 {json.loads(ended.out)['top1']:.2f} +- " + text.out.partition("+- ")[2]
    assert text.out.endswith("on 40 examples\n")
    assert run("evaluate", out / "model.onnx", "--data", labelled, "--quiet").out == ""


def test_real_data_can_take_the_place_of_synthesis(here, labelled):
    out = here / "real"
    ended = run("quantize", *TINY, "--out", out, *QUICK, "--calibration", labelled, "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out == ""
    report = json.loads((out / "report.json").read_text())
    assert report["images"]["source"] == "real images"
    assert report["images"]["count"] == 8
    assert report["synthesis"] is None
    np.testing.assert_array_equal(np.load(out / "images.npz")["images"], np.load(labelled)["images"][::5])


def test_a_file_that_fails_verification_is_written_with_exit_code_3(here, monkeypatch):
    import dffg.pipeline.measure

    bad = SimulationMatch(
        top1=0.5,
        equal_share=0.5,
        max_abs_difference_in_steps=9,
        worst_tensor="relu",
        output_error=0.0,
        unwatched_noise=0.0,
        count=16,
    )
    monkeypatch.setattr(dffg.pipeline.measure, "match_simulation", lambda *_arguments: bad)
    ended = run("quantize", *TINY, "--out", here / "unverified", *QUICK, "--json")
    assert ended.code == 3
    assert "verification failed: the runtime disagrees with the simulation" in ended.err
    assert "in relu only 50.00%" in json.loads(ended.out)["problems"][0]
    assert (here / "unverified" / "model.onnx").exists()


def test_nothing_is_left_when_the_run_is_interrupted_while_writing(here, monkeypatch):
    import dffg.pipeline.measure

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(dffg.pipeline.measure, "match_simulation", interrupted)
    before = sorted(here.iterdir())
    ended = run("quantize", *TINY, "--out", here / "interrupted", *QUICK)
    assert ended.code == 130
    assert "interrupted; nothing was written" in ended.err
    assert sorted(here.iterdir()) == before


LEARNED = ("--bits", "W4A4", "--learning-images", "6", "--reconstruction-steps", "4", "--finetune-steps", "2")


@pytest.fixture(scope="module")
def learned(here):
    """A network of 4 bits, and where it was written."""
    return run("quantize", *TINY, "--out", here / "learned", *QUICK, *LEARNED), here / "learned"


def test_learning_that_is_interrupted_goes_on_and_ends_the_same(here, learned, monkeypatch):
    import dffg.quant.learning

    ended, whole = learned
    assert ended.code == 0, ended.err

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    out, kept = here / "stopped", here / "stopped.partial"
    with monkeypatch.context() as patched:
        patched.setattr(dffg.quant.learning, "finetune", interrupted)
        ended = run("quantize", *TINY, "--out", out, *QUICK, *LEARNED)
    assert ended.code == 130
    assert "stopped.partial has what was done, and the same command goes on from there" in ended.err
    assert kept.is_dir()
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr(dffg.quant.reconstruct, "_learn", interrupted)
        assert run("quantize", *TINY, "--out", out, *QUICK, *LEARNED).code == 0
    assert not kept.exists()
    assert (out / "parameters.npz").read_bytes() == (whole / "parameters.npz").read_bytes()
    assert (out / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()


SHORT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore of it")


@pytest.mark.parametrize("error", [MemoryError(), SHORT_OF_MEMORY], ids=["Python's", "torch's"])
def test_memory_that_runs_out_in_learning_is_said_and_what_was_done_is_kept(here, learned, monkeypatch, error):
    _, whole = learned
    out, kept = here / "short", here / "short.partial"
    with monkeypatch.context() as patched:
        patched.setattr("dffg.quant.learning.finetune", mock.Mock(side_effect=error))
        ended = run("quantize", *TINY, "--out", out, *QUICK, *LEARNED)
    assert ended.code == 2
    assert re.search(r"dffg: memory ran out: .+\nFewer --learning-images .*\n$", ended.err)
    assert "more of it" not in ended.err
    assert not out.exists()
    assert kept.is_dir()
    assert run("quantize", *TINY, "--out", out, *QUICK, *LEARNED, "--quiet").code == 0
    assert (out / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
    shutil.rmtree(out)


def test_memory_that_runs_out_in_verification_is_said_and_nothing_is_left(here, monkeypatch):
    before = sorted(here.iterdir())
    monkeypatch.setattr("dffg.pipeline.measure.match_simulation", mock.Mock(side_effect=MemoryError))
    ended = run("quantize", *TINY, "--out", here / "short", *QUICK)
    assert (ended.code, ended.err.count("memory ran out: MemoryError")) == (2, 1)
    assert sorted(here.iterdir()) == before


def test_other_errors_of_torch_are_bugs(here, monkeypatch):
    monkeypatch.setattr("dffg.pipeline.measure.match_simulation", mock.Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("quantize", *TINY, "--out", here / "bug", *QUICK)


def test_what_a_factory_prints_is_no_part_of_the_answer(here):
    ended = run("inspect", f"{MODULE}:speaks", *INPUT, "--json")
    assert ended.code == 0, ended.err
    assert "loading" in ended.err
    assert json.loads(ended.out)["input"]["shape"] == [3, 16, 16]


@pytest.mark.parametrize(("mean", "doubted"), [("123.7", True), ("0.5,1.5,0.5", True), ("0.5", False)])
def test_a_mean_beyond_all_pixels_is_doubted(here, mean, doubted):
    ended = run("inspect", *TINY, "--mean", mean)
    assert ended.code == 0, ended.err
    assert ("lies beyond the bounds 0:1 of the pixels" in " ".join(ended.err.split())) == doubted


def test_a_directory_is_not_called_as_a_file(here):
    refused(run("quantize", *TINY, "--out", here / "x.onnx", *QUICK), "is called as a file", "give --out x")
    assert not (here / "x.onnx").exists()


def test_finetune_describes_the_input_as_quantize_did(here, tmp_path):
    normalized = ("--mean", "0.5", "--std", "0.25")
    assert run("quantize", *TINY, *normalized, "--out", tmp_path / "first", *QUICK).code == 0
    command = ("finetune", *TINY, "--from", tmp_path / "first", "--steps", "1", "--out")
    assert run(*command, tmp_path / "tuned").code == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text())["input"] for name in ("first", "tuned")]
    assert reports[0] == reports[1]
    assert reports[0]["mean"] == [0.5]
    refused(
        run(*command, tmp_path / "other", "--mean", "0.4"), "was quantized for inputs with mean", "(0.5,)", "(0.4,)"
    )


def test_finetune_goes_on_from_what_quantize_wrote(here, learned):
    out = here / "tuned"
    ended = run("finetune", *TINY, "--from", learned[1], "--out", out, "--steps", "5", "--json")
    assert ended.code == 0, ended.err
    report, before = json.loads(ended.out), json.loads((learned[1] / "report.json").read_text())
    assert report["scheme"] == "W4A4"
    assert report["learning"]["finetune_steps"] == 5
    assert report["images"]["count"] == before["images"]["count"] == before["learning"]["learning_images"] == 8
    assert report["files"]["images.npz"] == before["files"]["images.npz"]
    with np.load(learned[1] / "parameters.npz") as old, np.load(out / "parameters.npz") as new:
        assert old.files == new.files
        assert any((old[name] != new[name]).any() for name in old.files)
        assert all((old[name] == new[name]).all() for name in old.files if name.endswith("limits"))


def test_finetune_refuses_an_impossible_seed_before_any_work(here, learned, monkeypatch):
    monkeypatch.setattr("dffg.pipeline.steps.capture", mock.Mock(side_effect=AssertionError))
    options = ("--steps", "1", "--seed", str(2**44))
    ended = run("finetune", *TINY, "--from", learned[1], "--out", here / "refused", *options)
    assert (ended.code, "seed is 17592186044416; choose a number" in ended.err) == (2, True)


def test_finetune_on_fewer_images_says_and_keeps_which(here, learned):
    out = here / "fewer"
    options = ("--steps", "1", "--images", "3", "--seed", "5")
    ended = run("finetune", *TINY, "--from", learned[1], "--out", out, *options, "--json")
    assert ended.code == 0, ended.err
    report, before = json.loads(ended.out), json.loads((learned[1] / "report.json").read_text())
    assert report["images"]["count"] == report["learning"]["learning_images"] == 3
    assert (report["seed"], report["synthesis"]) == (5, before["synthesis"])
    kept, all_of_them = (SyntheticSet.load(place / "images.npz") for place in (out, learned[1]))
    np.testing.assert_array_equal(kept.inputs, all_of_them.inputs[:3])
    assert sum(snapshot.count for snapshot in kept.snapshots) == 3
    again = run("finetune", *TINY, "--from", out, "--out", here / "fewer-again", "--steps", "1", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["seed"] == 5


def test_finetune_makes_more_images_where_more_are_asked_for(here, learned):
    ended = run(
        "finetune", *TINY, "--from", learned[1], "--out", here / "more", "--steps", "1", "--images", "12", "--json"
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"]["count"] == 12


@pytest.mark.parametrize(
    ("network", "start", "says"),
    [
        (f"{MODULE}:tiny", "nowhere", "nowhere/report.json is missing"),
        (f"{MODULE}:other", "learned", "another network"),
    ],
)
def test_finetune_says_what_it_cannot_go_on_from(here, learned, network, start, says):
    ended = run("finetune", network, "--input", "3x16x16", "--from", here / start, "--out", here / "refused")
    assert ended.code == 2
    assert says in ended.err
    assert not (here / "refused").exists()


# Pages


def test_report_writes_the_page_anew(finished):
    out = finished[1]
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    ended = run("report", out)
    assert (ended.code, ended.out) == (0, f"{out / 'report.html'}\n"), ended.err
    assert (out / "report.html").read_bytes() == page
    assert run("report", out, "--quiet").out == ""


def test_report_compares_several_results(finished, overwritten, here):
    out = here / "both.html"
    ended = run("report", finished[1], overwritten[1], "--out", out, "--json")
    assert ended.code == 0, ended.err
    plain = json.loads(ended.out)
    assert plain["written"] == [str(finished[1] / "report.html"), str(overwritten[1] / "report.html"), str(out)]
    assert [run["seed"] for run in plain["runs"]] == [0, 5]
    assert [run["drop_points"] is None for run in plain["runs"]] == [True, False]
    assert "synthesis.seed" in out.read_text(encoding="utf-8")
    refused(run("report", finished[1], overwritten[1], "--out", out), "both.html exists", "--force")
    assert run("report", finished[1], overwritten[1], "--out", out, "--force").code == 0


def test_report_of_what_is_no_result_is_refused(here, tmp_path):
    refused(run("report", tmp_path), "report.json is missing; give the directory that quantize has written")
    refused(run("report"), "Missing argument")


# The other commands


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_synthesize_writes_a_file(here, suffix):
    out = here / f"images{suffix}"
    ended = run("synthesize", *TINY, "--out", out, *QUICK, "--json")
    assert ended.code == 0, ended.err
    made = SyntheticSet.load(out)
    assert made.inputs.shape == (8, 3, 16, 16)
    plain = json.loads(ended.out)
    assert (plain["count"], plain["path"]) == (8, str(out))
    assert plain["loss"] == made.snapshots[-1].loss
    again = run("synthesize", *TINY, "--out", out, *QUICK)
    assert again.code == 2
    assert "exists; choose another name or overwrite it with --force" in again.err
    assert run("synthesize", *TINY, "--out", out, *QUICK, "--force", "--quiet").out == ""


def test_another_generator_makes_images(here):
    out = here / "zeroq.npz"
    ended = run("synthesize", *TINY, "--out", out, *QUICK, "--generator", "zeroq")
    assert ended.code == 0, ended.err
    made = SyntheticSet.load(out)
    assert (made.config.generator, made.config.batch_size, len(made)) == ("zeroq", 64, 8)
    low, high = made.spec.input_bounds()
    assert (made.inputs < low).any() or (made.inputs > high).any()  # its images do not keep to the pixels


def test_noise_has_no_loss_and_no_steps(here):
    out = here / "noise.npz"
    ended = run("synthesize", *TINY, "--out", out, "--images", "8", "--generator", "noise", "--json")
    assert json.loads(ended.out)["loss"] is None
    assert SyntheticSet.load(out).snapshots[0].loss is None
    ended = run("synthesize", *TINY, "--out", here / "again.npz", "--images", "8", "--generator", "noise")
    assert ended.out.startswith("8 images: ")
    refused(run("synthesize", *TINY, "--out", here / "no.npz", *QUICK, "--generator", "noise"), "steps is 4", "noise")


def test_quantize_reports_the_generator(here):
    ended = run("quantize", *TINY, "--out", here / "by-dsg", *QUICK, "--generator", "dsg", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["synthesis"]["generator"] == "dsg"
    assert "by dsg" in str(json.loads(ended.out)["images"])


def test_an_option_that_a_generator_does_not_have_is_refused(here):
    ended = run("synthesize", *TINY, "--out", here / "no.npz", *QUICK, "--generator", "zeroq", "--decay", "0.5")
    refused(ended, "decay is not an option of the generator zeroq")


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("images.pt", (), "ends with .pt; files end with .npz, .safetensors, .npy, and any other name is a folder"),
        ("images.NPZ", (), "ends with .NPZ; files end with"),
        ("pictures", ("--bounds", "-3:3"), "with bounds (-3.0, 3.0) are not pictures; give --out a name that ends in"),
    ],
)
def test_a_place_that_images_cannot_be_saved_in_is_refused_before_any_work(here, monkeypatch, out, options, says):
    monkeypatch.setattr(
        "dffg.synthesis.synthesize.synthesize_set", lambda *_arguments, **_options: pytest.fail("images were made")
    )
    refused(run("synthesize", *TINY, "--out", here / out, *QUICK, *options), says)
    assert not (here / out).exists()


@pytest.mark.parametrize("name", ["whole.npz", "whole.npy", "whole"])
def test_synthesis_that_is_interrupted_goes_on_and_ends_the_same(here, monkeypatch, name):
    many = ("--images", "12", "--batch-size", "2", "--steps", "4")
    assert run("synthesize", *TINY, "--out", here / name, *many).code == 0
    out, kept = here / f"stopped-{name}", here / f"stopped-{name}.partial"

    def interrupt(view, progress):
        seen.append(progress.chain)
        if progress.chain == stopping:
            raise KeyboardInterrupt

    monkeypatch.setattr("dffg.report.progress.ProgressView.update", interrupt)
    seen, stopping = [], 3
    ended = run("synthesize", *TINY, "--out", out, *many)
    assert (ended.code, out.exists()) == (130, False)
    assert f"{kept} has what was done, and the same command goes on from there" in ended.err
    ended = run("synthesize", *TINY, "--out", out, *many, "--seed", "1")
    assert ended.code == 2
    assert "begun otherwise: seed was 0 and is 1" in ended.err
    seen, stopping = [], None
    assert run("synthesize", *TINY, "--out", out, *many).code == 0
    assert min(seen) == 3
    assert not kept.exists()
    same = tree if out.is_dir() else Path.read_bytes
    assert same(out) == same(here / name)


def test_synthesize_writes_pictures(here):
    out = here / "pictures"
    ended = run("synthesize", *TINY, "--out", out, *QUICK)
    assert ended.code == 0, ended.err
    assert ended.out.strip().startswith("8 images, loss ")
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{index:05d}.png" for index in range(8)), "list.txt"]
    assert (out / "list.txt").read_text().split() == names[:-1]
    run("synthesize", *TINY, "--out", here / "same.npz", *QUICK)
    pixels = np.load(here / "same.npz")["images"]
    np.testing.assert_array_equal(np.asarray(Image.open(out / names[3])), np.moveaxis(pixels[3], 0, -1))


def test_synthesize_overwrites_pictures_with_force(here):
    out = here / "more-pictures"
    for arguments in ((), ("--force", "--seed", "1")):
        ended = run("synthesize", *TINY, "--out", out, *QUICK, *arguments)
        assert ended.code == 0, ended.err
    refused = run("synthesize", *TINY, "--out", out, *QUICK)
    assert refused.code == 2
    assert "is not empty" in refused.err


def test_features_cannot_be_written_as_pictures(here):
    features = (f"{MODULE}:features", "--input", "1x16x16", "--bounds", "-130:30")
    ended = run("synthesize", *features, "--out", here / "spectra", *QUICK)
    assert ended.code == 2
    assert "give --out a name that ends in .npz, .safetensors or .npy" in ended.err
    assert not (here / "spectra").exists()
    assert run("synthesize", *features, "--out", here / "spectra.npz", *QUICK).code == 0
    made = SyntheticSet.load(here / "spectra.npz")
    assert made.spec.bounds == (-130.0, 30.0)
    assert -130 <= made.inputs.min() < 0 < made.inputs.max() <= 30


def test_synthesize_writes_an_array_for_other_tools(here):
    run("synthesize", *TINY, "--out", here / "set.npz", *QUICK)
    made = SyntheticSet.load(here / "set.npz")
    ended = run("synthesize", *TINY, "--out", here / "inputs.npy", *QUICK)
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(np.load(here / "inputs.npy"), made.inputs)
    run("synthesize", *TINY, "--out", here / "pixels.npy", *QUICK, "--layout", "nhwc", "--values", "pixels")
    pixels = np.load(here / "pixels.npy")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (8, 16, 16, 3))
    np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2) / 255, made.inputs, atol=1e-6)


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("no.npz", ("--layout", "nhwc"), "--layout and --values describe .npy files"),
        ("no-folder", ("--values", "pixels"), "--layout and --values describe .npy files"),
        ("no.npy", ("--values", "pixels", "--bounds", "-130:30"), "are not pixels; choose values inputs"),
        ("no.npy", ("--values", "pixels", "--generator", "noise"), "left what 8-bit pixels can hold"),
    ],
)
def test_impossible_arrays_are_refused(here, out, options, says):
    refused(run("synthesize", *TINY, "--out", here / out, "--images", "8", *options), says)
    assert not (here / out).exists()


def test_inspect_shows_batch_norms_and_writes_nothing(here):
    before = tree(here)
    ended = run("inspect", *TINY, "--json")
    assert ended.code == 0, ended.err
    plain = json.loads(ended.out)
    assert [(norm["name"], norm["channels"], norm["folds"]) for norm in plain["batch_norms"]] == [
        ("1", 8, True),
        ("4", 12, True),
    ]
    assert plain["quantized_layers"] == 3
    assert plain["parameters"] == sum(p.numel() for p in tiny_network(here).parameters())
    text = run("inspect", *TINY)
    assert text.code == 0
    assert "3 layers" in text.out
    assert {name: content for name, content in tree(here).items() if "__pycache__" not in name} == {
        name: content for name, content in before.items() if "__pycache__" not in name
    }


def test_pt2_file_describes_its_own_shape(here):
    program = torch.export.export(
        tiny_network(here),
        (torch.zeros(2, 3, 16, 16),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, here / "network.pt2")
    ended = run("inspect", here / "network.pt2", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["input"]["shape"] == [3, 16, 16]


# Bad input


@pytest.fixture
def earlier(here, tmp_path):
    """The earlier result that a run with --force would overwrite, and the files a bad command line may name."""
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    for name in ("model.onnx", "report.json", "notes.txt"):
        (out / name).write_text("old")
    torch.save({"0.weight": torch.zeros(8, 3, 3, 3)}, here / "wrong.pth")
    for name in ("file", "text.onnx", "text.xml", "text.pt2"):
        (here / name).write_text("")
    (here / f"{MODULE}_ends.py").write_text("import sys\nsys.exit(0)\n")
    features = np.zeros((2, 3, 16, 16), np.float32)
    features[1, 0, 0, 0] = np.nan
    np.savez(here / "nan.npz", features=features, labels=np.arange(2))
    torch.manual_seed(0)
    return out


def refused(ended: Ended, *parts: str) -> None:
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in " ".join(ended.err.split())


INPUT = ("--input", "3x16x16")
TWO_INPUTS = (f"{MODULE}:TwoInputs", "--input", "3x16x16/3x16x16")
BAD = {
    "no-batch-norm": ((f"{MODULE}:no_norm", *INPUT), "the network has no BatchNorm", "Real data (--calibration)"),
    "no-statistics": ((f"{MODULE}:no_statistics", *INPUT), "BatchNorm 1 has no running statistics", "real data"),
    "nan-mean": ((f"{MODULE}:nan_mean", *INPUT), "BatchNorm 4 has NaN", "1 of 12 channels (first: [3])"),
    "nan-variance": ((f"{MODULE}:nan_variance", *INPUT), "BatchNorm 4 has NaN", "1 of 12 channels (first: [3])"),
    "negative-variance": ((f"{MODULE}:negative_variance", *INPUT), "BatchNorm 4 has NaN, infinite or negative"),
    "infinite-mean": ((f"{MODULE}:infinite_mean", *INPUT), "BatchNorm 4 has NaN, infinite or negative"),
    "not-capturable": ((f"{MODULE}:DataDependent", *INPUT), "torch.export cannot capture this network", "control flow"),
    "two-inputs": ((f"{MODULE}:TwoInputs", *INPUT), "does not take one tensor", "like --input 3x224x224/8"),
    "wrong-channels": ((f"{MODULE}:tiny", "--input", "1x16x16"), "fails on an input of shape 1x16x16", "--input CxHxW"),
    "wrong-rank": ((f"{MODULE}:tiny", "--input", "16"), "fails on an input of shape 16", "--input CxHxW"),
    "no-shape": ((f"{MODULE}:tiny",), "the shape of the input is unknown; give it with --input"),
    "shape-empty": ((f"{MODULE}:TwoInputs", "--input", "3x16x16/"), "the shape of the input is unknown; give it with"),
    "shape-text": ((f"{MODULE}:tiny", "--input", "3,16,16"), "cannot read input shape '3,16,16'; write it like 3x224"),
    "shape-zero": ((f"{MODULE}:tiny", "--input", "3x0x16"), "is not usable; give CxHxW with positive sizes"),
    "weights-unfit": (
        (*TINY, "--weights", "wrong.pth"),
        "do not fit the network",
        "12 missing in the file (1.bias",
    ),
    "weights-missing": ((*TINY, "--weights", "nothing.pth"), "there is no weights file at nothing.pth"),
    "timm-name": (("timm:mobilenetv2_10",), "timm has no network 'mobilenetv2_10'; did you mean", "mobilenetv2_100"),
    "torchvision-name": (("torchvision:resnet19",), "torchvision has no network 'resnet19'; did you mean", "resnet18"),
    "demo-name": (("demo:efficientnet",), "demo has no network 'efficientnet'; did you mean efficientnet_lite0?"),
    "no-form": (("resnet18",), "'resnet18' is not a network dffg knows; give demo:NAME"),
    "module": (("dffg_no_such_module:tiny",), "dffg_no_such_module cannot be imported"),
    "factory": ((f"{MODULE}:huge",), f"{MODULE}.py) has no 'huge'; it has tiny"),
    "ends": ((f"{MODULE}:ends",), f"{MODULE}:ends ends the program (sys.exit(0)) in place of returning a network"),
    "ends-forward": ((f"{MODULE}:Ends", *INPUT), "the network ends the program (sys.exit(0)) in its forward"),
    "ends-import": ((f"{MODULE}_ends:tiny",), "(sys.exit(0)) where it is imported", 'below if __name__ == "__main__":'),
    "shape-large": ((f"{MODULE}:tiny", "--input", "3x9999x9999"), "has 299940003 numbers, and at most 268435456"),
    "nan-data": ((*TINY, "--eval", "nan.npz"), "holds NaN or infinite values in 1 of 2 examples, first in example 1"),
    "pt2-missing": (("nothing.pt2",), "there is no file nothing.pt2"),
    "bits-W9A8": ((*TINY, "--bits", "W9A8"), "9 bits are not supported; choose a width from 2 to 8"),
    "bits-foo": ((*TINY, "--bits", "foo"), "cannot read bit widths 'foo'; write them like W8A8"),
    "mean-count": ((*TINY, "--mean", "0.5,0.5"), "does not fit 3 channels, the first size of the input 3x16x16"),
    "bits-mixed": ((*TINY, "--bits", "mixed"), "bits mixed needs a budget; give one like size=0.5x"),
    "budget-alone": ((*TINY, "--budget", "bits=4"), "budget is given, and bits is W8A8; it needs bits mixed"),
    "budget-text": ((*TINY, "--bits", "mixed", "--budget", "small"), "cannot read the budget 'small'"),
    "budget-latency": ((*TINY, "--bits", "mixed", "--budget", "latency=0.5x"), "the same int8 kernels"),
    "budget-small": (
        (*TINY, "--bits", "mixed", "--budget", "size=0.1x", "--images", "8", "--steps", "2"),
        "no widths fit the budget size=0.1x; the smallest possible is size=0.25x",
    ),
    "mean-text": ((*TINY, "--mean", "half"), "cannot read numbers 'half'"),
    "std-zero": ((*TINY, "--std", "0"), "must be positive"),
    "bounds-order": ((*TINY, "--bounds", "1:0"), "must be two finite numbers, the lower one first, like 0:1"),
    "bounds-one": ((*TINY, "--bounds", "1"), "cannot read bounds '1'; write them like 0:1"),
    "bounds-text": ((*TINY, "--bounds", "a:b"), "cannot read bounds 'a:b'; write them like 0:1"),
    "eval-missing": ((*TINY, "--eval", "no-folder"), "there is no data at no-folder"),
    "calibration-missing": ((*TINY, "--calibration", "no-folder"), "there is no data at no-folder"),
    "steps": ((*TINY, "--steps", "0"), "steps is 0; it must be at least 1"),
    "burn-in": ((*TINY, "--steps", "4", "--burn-in", "4"), "no snapshot would be kept"),
    "steps-text": ((*TINY, "--steps", "many"), "'many' is not a valid integer"),
    "schedule": ((*TINY, "--schedule", "wavy"), "'wavy' is not one of", "cosine"),
    "ray-model": (("--ray", *TINY), f"--ray is followed by '{MODULE}:tiny', which is no address", "--ray at the end"),
    "mean-inputs": ((*TWO_INPUTS, "--mean", "0.5/0.5/0.5"), "--mean 0.5/0.5/0.5 describes 3 inputs, and there are 2"),
    "mean-of-second": (
        (*TWO_INPUTS, "--mean", "0.5/0.5,0.5"),
        "input 2 of 2, whose options are separated by slashes: mean (0.5, 0.5) does not fit 3 channels",
    ),
    "other-bits": ((*TINY, "--other-bits", "9"), "--other-bits is 9, and 9 bits are not supported; choose a width"),
    "option": ((*TINY, "--no-such-option"), "No such option"),
    "option-near": ((*TINY, "--imagess", "3"), "No such option", "--images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_changes_nothing(earlier, case):
    arguments, *parts = BAD[case]
    before = tree(earlier.parent)
    ended = run("quantize", *arguments, "--out", earlier, "--force")
    refused(ended, *parts)
    assert ended.out.strip() == ""
    assert tree(earlier.parent) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("case", ["no-batch-norm", "nan-mean", "weights-unfit", "eval-missing"])
def test_bad_input_makes_no_directory(earlier, case):
    arguments, *parts = BAD[case]
    refused(run("quantize", *arguments, "--out", earlier.parent / "new"), *parts)
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("case", ["no-batch-norm", "nan-mean", "wrong-channels", "mean-count", "factory", "no-shape"])
@pytest.mark.parametrize("command", ["synthesize", "inspect"])
def test_bad_input_is_explained_by_every_command(earlier, command, case):
    arguments, *parts = BAD[case]
    out = () if command == "inspect" else ("--out", earlier.parent / "images.npz")
    refused(run(command, *arguments, *out), *parts)
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


def test_pt2_file_with_another_shape_is_refused(earlier, here):
    program = torch.export.export(
        tiny_network(here),
        (torch.zeros(2, 3, 16, 16),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, here / "other.pt2")
    before = tree(earlier)
    refused(run("quantize", "other.pt2", "--input", "1x16x16", "--out", earlier, "--force"), "1x16x16", "--input")
    assert tree(earlier) == before


def test_place_that_is_a_file_is_refused(here):
    (here / "file").write_text("kept")
    for command, message in (("quantize", "is a file; give a directory with --out"), ("synthesize", "is a file")):
        refused(run(command, *TINY, "--out", here / "file", "--force"), message)
        refused(run(command, *TINY, "--out", here / "file" / "below"), "cannot be made")
    assert (here / "file").read_text() == "kept"


def test_place_that_is_not_empty_is_refused_without_force(earlier):
    before = tree(earlier)
    refused(run("quantize", *TINY, "--out", earlier), "is not empty", "--force")
    assert tree(earlier) == before


def test_place_is_refused_before_the_network_is_loaded(earlier):
    refused(run("quantize", "dffg_no_such_module:tiny", "--out", earlier), "is not empty")


def test_missing_place_is_refused(here):
    refused(run("quantize", *TINY), "Missing option '--out'")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        *((f"nothing.{ending}", f"there is no file nothing.{ending}") for ending in ("onnx", "xml", "pt2", "pte")),
        ("text.onnx", "is not a readable ONNX file"),
        ("text.xml", "OpenVINO cannot load"),
        ("text.pt2", "is not a readable torch.export archive"),
        ("file", "is none of the files that can be run here"),
        (".", "is a directory; name the file in it, like model.onnx"),
    ],
)
@pytest.mark.usefixtures("earlier")
def test_evaluate_of_what_is_no_network_is_refused(labelled, file, message):
    refused(run("evaluate", file, "--data", labelled), message)


@pytest.mark.parametrize("command", [(), ("unknown",)])
def test_unknown_command_is_refused(command):
    ended = run(*command)
    assert ended.code == 2
    assert "Usage: " in ended.err


def test_debug_shows_the_traceback(here):
    from dffg.errors import InputError

    with mock.patch.object(sys, "argv", ["dffg", "inspect", "resnet18", "--debug"]), pytest.raises(InputError):
        main()


def test_names_in_brackets_are_printed_as_they_are(here):
    ended = run("synthesize", *TINY, "--out", here / "run[bold].npz", *QUICK)
    assert ended.code == 0, ended.err
    assert "run[bold].npz" in "".join(ended.out.split("\n"))


# Cost of starting, and being stopped


def test_import_is_cheap():
    ended = python("import dffg, sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["quantize", "--help"], ["report", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = """
import sys
from dffg.cli.main import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "onnxruntime", "onnx", "numpy", "scipy", "PIL", "timm", "torchvision", "rich", "jinja2",
         "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    ended = python(code, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "version" in ended.stdout or "Usage" in ended.stdout


def test_every_public_name_can_be_imported():
    import dffg as package

    assert all(getattr(package, name).__name__.endswith(name) for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_help_names_every_option_with_its_default():
    ended = run("quantize", "--help")
    text = " ".join(ended.out.split())
    assert ended.code == 0
    for part in ("--images INTEGER Images to make. [default: 64]", "[default: W8A8]", "--force", "--eval", "--burn-in"):
        assert part in text


def on_a_terminal(folder: Path, *arguments: str, **variables: str) -> str:
    """Everything that a command writes where standard output and error are a terminal."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**plain, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from dffg.cli.main import main; main()", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # how a terminal ends whose other side is closed
            while part := os.read(ours, 4096):
                written += part
        assert process.wait() == 0, written
    os.close(ours)
    return written.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*(?:3[0-79]|4[0-79]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
INSPECT = ("inspect", *TINY, "--mean", "0.5")


def test_a_terminal_has_colors_and_progress(here):
    written = on_a_terminal(here, *INSPECT)
    assert COLOR.search(written)
    assert "measure one pass" in written
    assert "BatchNorm" in written


def test_no_color_is_honored(here):
    written = on_a_terminal(here, *INSPECT, NO_COLOR="1")
    assert not COLOR.search(written)
    assert "BatchNorm" in written


def test_a_simple_terminal_gets_no_control_sequences(here):
    assert "\x1b" not in on_a_terminal(here, *INSPECT, TERM="dumb")


def test_quiet_writes_nothing_even_on_a_terminal(here):
    assert on_a_terminal(here, "inspect", *TINY, "--quiet") == ""


def test_without_a_terminal_there_are_no_control_sequences(here, finished):
    ended = run(*INSPECT)
    for text in (ended.out, ended.err, finished[0].out, finished[0].err):
        assert "\x1b" not in text
    assert "measure one pass" not in ended.out + ended.err


SYNTHESIS_THAT_TELLS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import dffg.report.progress
from dffg.cli.main import main

update = dffg.report.progress.ProgressView.update


def telling(view, progress):
    update(view, progress)
    if progress.step == 3:
        os.write(2, b"synthesizing\\n")


dffg.report.progress.ProgressView.update = telling
main()
"""


@pytest.mark.parametrize("command", ["quantize", "synthesize"])
def test_interrupted_synthesis_leaves_nothing(here, tmp_path, command):
    place, temporary = tmp_path / "place", tmp_path / "temporary"
    place.mkdir()
    temporary.mkdir()
    out = place / ("out" if command == "quantize" else "out.npz")
    arguments = [command, *TINY, "--out", str(out), "--images", "8", "--steps", "1000000"]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-c", SYNTHESIS_THAT_TELLS, *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line == "synthesizing\n":
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        code = process.wait(timeout=300)
    errors = "".join(lines) + rest
    assert code == 130, errors
    assert errors.endswith("dffg: interrupted; nothing was written.\n")
    assert "Traceback" not in errors
    assert list(place.iterdir()) == []
    # .ses is written by ONNX Runtime when it is imported
    assert [path.name for path in temporary.iterdir() if path.name != ".ses"] == []


def test_installed_command_works(here):
    """Through the entry point of the package, in a process of its own."""
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="dffg")
    assert entry.load() is main
    ended = python(
        "from dffg.cli.main import main; main()",
        "quantize",
        f"{MODULE}:no_norm",
        *INPUT,
        "--out",
        "unborn",
        cwd=here,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))},
    )
    assert ended.returncode == 2
    assert ended.stdout.strip() == ""
    assert "dffg: the network has no BatchNorm" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (here / "unborn").exists()


def test_spec_of_the_file_is_used_by_evaluate(overwritten):
    from dffg.onnx_file import read_spec

    assert read_spec(overwritten[1] / "model.onnx") == ImageSpec(
        shape=(3, 16, 16), mean=(0.5,), std=(0.25,), source="the command line"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell):
    ended = run("completion", shell)
    assert ended.code == 0, ended.err
    assert f"_DFFG_COMPLETE={shell}_complete" in ended.out


def test_the_printed_script_completes_options():
    environment = {
        **os.environ,
        "_DFFG_COMPLETE": "bash_complete",
        "COMP_WORDS": "dffg quantize --bi",
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-c", "from dffg.cli.main import main; import sys; sys.argv[0] = 'dffg'; main()"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert set(answer.split()) == {"plain,--bits", "plain,--bias-correction"}
