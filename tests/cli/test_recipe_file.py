"""Recipes from outside: what a file can say to a command, and what it cannot."""

from __future__ import annotations

import json

import click
import pytest

from dffg.cli.recipe_file import dump, read
from dffg.errors import InputError
from tests.cli import test_cli
from tests.cli.test_cli import QUICK, TINY, refused, run

here = test_cli.here  # the fixture

KNOWN = {
    "model": click.Argument(["model"]),
    "images": click.Option(["--images", "count"], type=int),
    "decay": click.Option(["--decay"], type=float),
    "mean": click.Option(["--mean"]),
    "bounds": click.Option(["--bounds"]),
    "lookahead": click.Option(["--lookahead"], type=bool),
    "learning-seconds": click.Option(["--learning-seconds"], type=float),
    "schedule": click.Option(["--schedule"], type=click.Choice(["cosine", "linear"])),
    "recipe": click.Option(["--recipe"]),
}


def values(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return {name: value for name, (value, _) in read(path, KNOWN).items()}


def test_values_are_read_as_the_command_line_reads_them(tmp_path):
    text = """
    # a comment
    model: demo:x
    images: 12
    decay: 1e-1        # not a number to YAML 1.1
    mean: [0.5, 0.25, .125]
    bounds: -130:30    # sexagesimal to YAML 1.1
    lookahead: no
    learning_seconds: 3
    schedule:
    """
    assert values(tmp_path, text) == {
        "model": "demo:x",
        "count": "12",
        "decay": "1e-1",
        "mean": "0.5,0.25,.125",
        "bounds": "-130:30",
        "lookahead": "no",
        "learning_seconds": "3",
    }


def test_an_empty_recipe_says_nothing(tmp_path):
    assert values(tmp_path, "# nothing\n") == {}


def test_every_value_has_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("images: 1\n\n# two\ndecay: 0.5\n")
    assert [place for _, place in read(path, KNOWN).values()] == [f"{path}, line 1", f"{path}, line 4"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("images: many", 1, "images: 'many' is not a valid integer"),
        ("images: 64.5", 1, "images: '64.5' is not a valid integer"),
        ("images: true", 1, "images: 'true' is not a valid integer"),
        ("images: [1, 2]", 1, "images: '1,2' is not a valid integer"),
        ("images: {count: 1}", 1, "images is not one value, nor a list of values"),
        ("mean: [[1], [2]]", 1, "mean is not one value, nor a list of values"),
        ("decay: 1\nimages: 1\nlookahead: perhaps", 3, "lookahead: 'perhaps' is not a valid boolean"),
        ("schedule: exponential", 1, "'exponential' is not one of 'cosine', 'linear'"),
        ("decay: 1\n\nimage: 3", 3, "a recipe has no option 'image'; did you mean images?"),
        ("trust: true", 1, "no option 'trust'; it can have bounds, decay"),
        ("decay: 1\ndecay: 2", 2, "decay stands here a second time"),
        ("learning_seconds: 1\nlearning-seconds: 2", 2, "learning-seconds stands here a second time"),
        ("recipe: slow", 1, "recipe is 'slow'; choose one of fast, balanced, best"),
        ("recipe: other.yaml", 1, "choose one of fast, balanced, best"),
        ("- images", 1, "a recipe consists of lines `option: value`"),
        ("images", 1, "a recipe consists of lines `option: value`"),
        ("[images]: 3", 1, "a recipe has no option"),
        ("<<: {images: 3}", 1, "the tag !!merge is not allowed"),
        ("images: 3\ndecay: [", 2, "this is not YAML"),
        ("images: 3\n---\nimages: 4", 2, "this is not YAML"),
        ("mean: &a [*a]", 1, "mean is not one value"),
    ],
)
def test_what_cannot_be_said_is_named_with_its_line(tmp_path, text, line, says):
    with pytest.raises(InputError) as raised:
        values(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'recipe.yaml'}, line {line}: ")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:pytest.fail ['code of a recipe was run']",
        "model: !!python/name:os.system",
        "? !!python/object/apply:pytest.fail ['code of a recipe was run']\n: 1",
        "mean: !mine [1]",
        "!!python/object/apply:pytest.fail ['code of a recipe was run']",
    ],
)
def test_a_recipe_makes_no_objects(tmp_path, text):
    with pytest.raises(InputError, match=r"line 1: (the tag .* is not allowed|a recipe consists of lines)"):
        values(tmp_path, text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"images: \x00", b"[" * 100_000], ids=["utf", "zero", "deep"])
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(InputError, match="YAML"):
        read(tmp_path / "recipe.yaml", KNOWN)


def test_what_is_written_is_read_again(tmp_path):
    written = {"model": tmp_path, "images": 12, "decay": 1e-5, "mean": "0.5", "bounds": "-130:30", "lookahead": True}
    text = dump({**written, "schedule": None})
    read_again = values(tmp_path, text)
    assert float(read_again.pop("decay")) == 1e-5
    assert read_again == {
        "model": str(tmp_path),
        "count": "12",
        "mean": "0.5",
        "bounds": "-130:30",
        "lookahead": "true",
    }


# From the command line


def written(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def shown(*arguments):
    ended = run("recipe", "show", *arguments)
    assert ended.code == 0, ended.err
    return dict(line.split(": ", 1) for line in ended.out.splitlines())


def test_a_recipe_takes_the_place_of_options(here):
    recipe = written(here, f"model: {TINY[0]}\ninput: 3x16x16\nimages: 8\nsteps: 4\nseed: 3\nout: by-recipe\n")
    ended = run("quantize", "--recipe", recipe, "--seed", "5", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert (report["synthesis"]["count"], report["synthesis"]["seed"]) == (8, 5)
    assert (here / "by-recipe" / "model.onnx").is_file()


def test_what_a_recipe_shows_can_be_fed_back(here):
    text = run("recipe", "show", *TINY, *QUICK, "--bits", "W4A8", "--decay", "0.25", "--bounds", "-130:30").out
    recipe = written(here, text)
    assert run("recipe", "show", "--recipe", recipe).out == text
    entries = shown("--recipe", recipe, "--bits", "W8A8", "--recipe", "best")
    assert (entries["images"], entries["decay"], entries["bounds"]) == ("8", "0.25", "'-130:30'")
    assert (entries["bits"], entries["recipe"], entries["model"]) == ("W8A8", "best", TINY[0])


def test_a_limit_of_memory_that_a_recipe_shows_can_be_fed_back(here):
    text = run("recipe", "show", "--memory-limit", "1.5GB").out
    assert "memory-limit: 1500000000B\n" in text
    again = run("recipe", "show", "--recipe", written(here, text))
    assert again.out == text, again.err


def test_a_recipe_names_a_recipe_of_learning_that_the_command_line_overrides(here):
    recipe = written(here, "recipe: best\nfinetune-steps: 7\n")
    entries = shown("--recipe", recipe)
    assert (entries["recipe"], entries["reconstruction-steps"], entries["finetune-steps"]) == ("best", "500", "7")
    entries = shown("--recipe", recipe, "--recipe", "fast")
    assert (entries["recipe"], entries["reconstruction-steps"], entries["finetune-steps"]) == ("fast", "0", "7")


def test_a_later_recipe_overrides(here):
    first, second = written(here, "images: 1\nseed: 1\n", "first.yaml"), written(here, "seed: 2\n", "second.yaml")
    entries = shown("--recipe", first, "--recipe", second)
    assert (entries["images"], entries["seed"]) == ("1", "2")


def test_one_recipe_serves_quantize_and_synthesize(here):
    recipe = written(here, f"model: {TINY[0]}\ninput: 3x16x16\nimages: 8\nsteps: 4\nbits: W4A8\nlayout: nhwc\n")
    ended = run("synthesize", "--recipe", recipe, "--out", here / "recipe.npy", "--quiet")
    assert ended.code == 0, ended.err
    assert shown("--recipe", recipe)["bits"] == "W4A8"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\ndecay: 3\n", "line 2: --decay is 3.0; choose a value from 0 to 1"),
        ("imges: 8\n", "line 1: a recipe has no option 'imges'; did you mean images?"),
        ("force: true\n", "line 1: a recipe has no option 'force'"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_line(here, text, says):
    refused(run("quantize", *TINY, "--out", here / "refused", "--recipe", written(here, text, "wrong.yaml")), says)
    assert not (here / "refused").exists()


def test_the_line_is_not_named_where_the_command_line_is_wrong(here):
    recipe = written(here, "decay: 0.5\n")
    ended = run("quantize", *TINY, "--out", here / "refused", "--recipe", recipe, "--decay", "3")
    refused(ended, "dffg: --decay is 3.0; choose")


@pytest.mark.parametrize(
    ("command", "says"),
    [("quantize", "give a YAML file or fast or balanced or best"), ("synthesize", "give a YAML file.")],
)
def test_a_recipe_that_is_not_there_is_named(here, command, says):
    refused(run(command, *TINY, "--out", here / "refused.npz", "--recipe", "bset"), "there is no recipe 'bset'", says)


def test_a_recipe_that_is_a_directory_is_said(here):
    (here / "folder").mkdir()
    refused(run("recipe", "show", "--recipe", "folder"), "folder cannot be read: Is a directory; give a YAML file")


def test_without_a_model_the_model_is_asked_for(here):
    ended = run("quantize", "--recipe", written(here, "images: 8\n"), "--out", here / "refused")
    refused(ended, "Missing argument 'MODEL'")
