"""Top-1 of a file alone, in its runtime."""

from __future__ import annotations

from pathlib import Path

from dffg.errors import DffgError, InputError, first_line
from dffg.evaluation.data import Data, check_folders
from dffg.evaluation.metrics import Score, score
from dffg.export.runtimes import runtime_for
from dffg.machine.device import is_out_of_memory
from dffg.onnx_file import output_names
from dffg.pipeline.measure import answers_of
from dffg.pipeline.run import Clock, CountCallback


def evaluate(path: str | Path, data: Data, *, on_count: CountCallback | None = None) -> Score:
    """Top-1 of a file on labelled data, in the runtime that its name's ending tells."""
    path = Path(path)
    if data.labels is None:
        raise InputError("the data has no labels; load it with labelled=True.")
    if path.is_dir():
        raise InputError(f"{path} is a directory; name the file in it, like {path / 'model.onnx'}.")
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    _refuse_several_outputs(path)
    try:
        (outputs,) = answers_of(runtime_for(path), [path], data, Clock(None, on_count).ticks)
    except DffgError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"{path} cannot be run on examples of shape {data.spec.shape} in batches: {first_line(error)}; give the "
            "shape that it takes by --input, and a file whose batch is not fixed."
        ) from error
    check_folders(outputs.shape[1], data)
    return score(outputs, data.labels)


def _refuse_several_outputs(path: Path) -> None:
    names = output_names(path) if path.suffix == ".onnx" else []
    if len(names) > 1:
        raise InputError(
            f"{path} has {len(names)} outputs ({', '.join(names)}), and top-1 is that of one; give a file whose only "
            "output is the classes."
        )
