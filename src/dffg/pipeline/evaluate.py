"""Top-1 of a file alone, in its runtime."""

from __future__ import annotations

from pathlib import Path

from dffg.errors import DffgError, InputError, first_line
from dffg.evaluation.data import Data, check_folders
from dffg.evaluation.metrics import Score, score
from dffg.export.runtimes import runtime_for
from dffg.machine.device import is_out_of_memory
from dffg.pipeline.measure import answers_of
from dffg.pipeline.run import Clock, CountCallback


def evaluate(path: str | Path, data: Data, *, on_count: CountCallback | None = None) -> Score:
    """Top-1 of a file on labelled data, in the runtime that its name's ending tells."""
    path = Path(path)
    if data.labels is None:
        raise InputError("the data has no labels; load it with labelled=True.")
    require_file(path)
    try:
        opened = runtime_for(path).open(path, 0)
        _refuse_several_outputs(path, opened.outputs)
        (outputs,) = answers_of([opened], data, Clock(None, on_count).ticks)
    except DffgError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"{path} cannot be run on examples of shape {data.spec.shape} in batches: {first_line(error)}; give the "
            "shape that it takes by --input, and a file whose batch is not fixed."
        ) from error
    if outputs.ndim < 2:
        raise InputError(
            f"{path} answers with one number for every example, and top-1 needs scores for every class, (batch, "
            "classes); give a file without the argmax."
        )
    check_folders(outputs.shape[1], data)
    return score(outputs, data.labels)


def require_file(path: Path) -> None:
    """Raises InputError where there is no file to be measured."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; name the file in it, like {path / 'model.onnx'}.")
    if not path.is_file():
        raise InputError(f"there is no file {path}.")


def _refuse_several_outputs(path: Path, outputs: int) -> None:
    if outputs > 1:
        raise InputError(
            f"{path} has {outputs} outputs, and top-1 is that of one; give a file whose only output is the classes."
        )
