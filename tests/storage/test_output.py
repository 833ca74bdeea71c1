from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dffg.errors import OutputError
from dffg.storage.output import check_directory, check_file, file_hash, staged_directory, staged_file

MARK = "report.json"


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


def fill(staging: Path) -> None:
    for name in ("model.onnx", MARK, "images.npz"):
        (staging / name).write_text(f"new {name}")


def fail_in_directory(out: Path, error: type[BaseException]) -> None:
    with staged_directory(out, commit_mark=MARK) as staging:
        fill(staging)
        (staging / "deeper").mkdir()
        raise error


def fail_in_file(out: Path, error: type[BaseException]) -> None:
    with staged_file(out) as staging:
        staging.write_text("half")
        raise error


@pytest.fixture
def earlier(tmp_path):
    """A directory with an earlier result and a file of somebody else."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("model.onnx", MARK, "notes.txt"):
        (folder / name).write_text(f"old {name}")
    return folder


def test_staged_directory_appears_with_everything(tmp_path):
    out = tmp_path / "out"
    with staged_directory(out, commit_mark=MARK) as staging:
        fill(staging)
        assert not out.exists()
    assert tree(tmp_path) == {
        "out": "",
        "out/model.onnx": "new model.onnx",
        "out/report.json": "new report.json",
        "out/images.npz": "new images.npz",
    }


def test_staged_directory_can_be_read_by_others(tmp_path):
    with staged_directory(tmp_path / "out", commit_mark=MARK) as staging:
        fill(staging)
    assert (tmp_path / "out").stat().st_mode & 0o755 == 0o755


def test_staged_directory_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_directory(tmp_path / "out", commit_mark=MARK) as staging:
        fill(staging)
    assert len(tree(tmp_path / "out")) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_new_directory_after_an_error(tmp_path, error):
    with pytest.raises(error):
        fail_in_directory(tmp_path / "out", error)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_earlier_result_is_untouched_after_an_error(tmp_path, earlier, error):
    before = tree(tmp_path)
    with pytest.raises(error):
        fail_in_directory(earlier, error)
    assert tree(tmp_path) == before


def test_nothing_is_left_of_parents_made_for_a_result_that_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_in_directory(tmp_path / "a" / "b" / "out", KeyboardInterrupt)
    assert tree(tmp_path) == {}


def test_other_files_of_the_directory_stay(tmp_path, earlier):
    with staged_directory(earlier, commit_mark=MARK) as staging:
        fill(staging)
    assert tree(tmp_path) == {
        "out": "",
        "out/model.onnx": "new model.onnx",
        "out/report.json": "new report.json",
        "out/images.npz": "new images.npz",
        "out/notes.txt": "old notes.txt",
    }


@pytest.mark.parametrize("others", [True, False])
def test_files_of_an_earlier_result_go_with_it(tmp_path, earlier, others):
    (earlier / "model.pt2").write_text("of another target")
    if not others:
        (earlier / "notes.txt").unlink()
    with staged_directory(earlier, commit_mark=MARK, replaced=["model.onnx", "model.pt2", "gone.bin"]) as staging:
        fill(staging)
    kept = ["notes.txt"] if others else []
    assert sorted(path.name for path in earlier.iterdir()) == sorted(["images.npz", "model.onnx", MARK, *kept])
    assert (earlier / "model.onnx").read_text() == "new model.onnx"


def test_commit_mark_is_removed_first_and_moved_last(tmp_path, earlier, monkeypatch):
    import dffg.storage.output

    moves = []
    really_replace = dffg.storage.output.os.replace

    def replace(source, target):
        moves.append((Path(target).name, (earlier / MARK).exists()))
        really_replace(source, target)

    monkeypatch.setattr(dffg.storage.output.os, "replace", replace)
    with staged_directory(earlier, commit_mark=MARK) as staging:
        fill(staging)
    assert [name for name, _ in moves][-1] == MARK
    assert sorted(name for name, _ in moves) == ["images.npz", "model.onnx", MARK]
    assert not any(mark_was_there for _, mark_was_there in moves)


def test_no_commit_mark_stands_beside_half_a_result(tmp_path, earlier, monkeypatch):
    import dffg.storage.output

    really_replace = dffg.storage.output.os.replace

    def replace(source, target):
        if Path(target).name == "model.onnx":
            raise OSError(28, "No space left on device")
        really_replace(source, target)

    monkeypatch.setattr(dffg.storage.output.os, "replace", replace)
    with (
        pytest.raises(OutputError, match=r"out cannot be written: .*No space"),
        staged_directory(earlier, commit_mark=MARK) as staging,
    ):
        fill(staging)
    assert not (earlier / MARK).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_staged_file_appears_whole_and_keeps_its_ending(tmp_path):
    out = tmp_path / "deeper" / "images.npz"
    with staged_file(out) as staging:
        assert staging.suffix == ".npz"
        staging.write_text("whole")
        assert not out.exists()
    assert tree(tmp_path) == {"deeper": "", "deeper/images.npz": "whole"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_earlier_file_is_untouched_after_an_error(tmp_path, error):
    out = tmp_path / "images.npz"
    out.write_text("old")
    with pytest.raises(error):
        fail_in_file(out, error)
    assert tree(tmp_path) == {"images.npz": "old"}


@pytest.mark.parametrize("name", ["out", "a/b/out"])
def test_a_new_place_is_accepted_and_not_made(tmp_path, name):
    check_directory(tmp_path / name)
    check_file(tmp_path / name)
    assert tree(tmp_path) == {}


def test_directory_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "out"
    path.write_text("")
    for force in (False, True):
        with pytest.raises(OutputError, match="is a file; give a directory with --out"):
            check_directory(path, force=force)


@pytest.mark.parametrize("place", [".", "..", "../here"])
def test_the_current_directory_is_refused(tmp_path, place, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match=rf"{place} holds the current directory, .*; give one below it"):
        check_directory(Path(place), force=True)
    check_directory(Path("../there"))


def test_directory_that_is_not_empty_is_refused_without_force(earlier):
    before = tree(earlier)
    with pytest.raises(OutputError, match=r"is not empty.*--force"):
        check_directory(earlier)
    check_directory(earlier, force=True)
    assert tree(earlier) == before


def test_file_that_exists_is_refused_without_force(tmp_path):
    path = tmp_path / "images.npz"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"exists.*--force"):
        check_file(path)
    check_file(path, force=True)
    assert path.read_text() == "old"


def test_file_that_is_a_directory_is_refused(tmp_path):
    with pytest.raises(OutputError, match="is a directory; give a file name"):
        check_file(tmp_path, force=True)


@pytest.mark.parametrize("check", [check_directory, check_file])
@pytest.mark.parametrize("below", ["out", "a/out"])
def test_a_place_below_a_file_is_refused(tmp_path, check, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"is a file, so .* cannot be made"):
        check(tmp_path / "file" / below)


@pytest.mark.parametrize("check", [check_directory, check_file])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, check, monkeypatch):
    import dffg.storage.output

    # The tests may run as root, who can write everywhere.
    def refuse(**_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dffg.storage.output.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check(tmp_path / "out")


def test_file_hash_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content" * 1000)
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
