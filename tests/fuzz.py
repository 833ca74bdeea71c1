"""Feed every parser with random and damaged input: python -m tests.fuzz --inputs 100000 [PARSER ...].

Whatever comes in, a parser answers or raises a `DffgError`. Text is drawn from what its grammar is made of, files are
real ones with bytes changed, cut off or added, or a JSON document with parts exchanged.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from dffg.cli import recipe_file
from dffg.cli.jobs_file import read_jobs
from dffg.cli.network import describe_input
from dffg.cli.quantize import quantize
from dffg.config import Budget, LearningConfig, QuantizationConfig, Scheme, SynthesisConfig, parse_bytes
from dffg.errors import DffgError
from dffg.evaluation.data import load_data
from dffg.graph.fold import fold_batch_norms
from dffg.images import SnapshotRecord, SyntheticSet
from dffg.models.archive import refuse_code
from dffg.models.weights import load_weights
from dffg.quant.decide import decide
from dffg.quant.placement import prepare
from dffg.quant.stored import load_parameters, tensors_of
from dffg.report.result import SCHEMA_VERSION, load_report
from dffg.spec import ImageSpec, parse_bounds, parse_numbers, parse_shape
from dffg.storage.checkpoint import Checkpoint, refuse_other_work, sealed
from tests.networks import captured, small_conv

Parse = Callable[[Any], Any]
SHAPE = (1, 2, 2)
SPEC = ImageSpec(shape=SHAPE)
KNOWN = dict(recipe_file.recipe_parameters(quantize))
_numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["", "0", "-1", "1e400", "nan", "inf", "9" * 5000, "٣", "1_0", "+1", " 1 ", "0x8", "²"]),
)


@st.composite
def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes exchanged, cut off or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(changed)))
        length = draw(st.sampled_from((0, 1, 1, 4, len(changed))))
        changed[start : start + length] = draw(st.binary(max_size=8))
    return bytes(changed)


def _text(*words: str, like: str = "") -> st.SearchStrategy[str]:
    """Words of a grammar and numbers in any order, an example with some letters changed, or anything."""
    changed = _damaged(like.encode()).map(lambda content: content.decode("utf-8", "replace"))
    return st.lists(st.sampled_from(words) | _numbers, max_size=8).map("".join) | changed | st.text(max_size=30)


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=5,
)


@st.composite
def _changed(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with values exchanged, removed and put in, at any depth."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        place = changed
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                break
            place = place[key]
        if draw(st.integers(0, 3)):
            place[key] = draw(_plain)
        else:
            place.pop(key, None)
    return changed


@cache
def _folder() -> Path:
    _folder.kept = tempfile.TemporaryDirectory(prefix="dffg-fuzz-")  # type: ignore[attr-defined]
    return Path(_folder.kept.name)  # type: ignore[attr-defined]


def _written(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(content)
    return path


def _zipped(members: dict[str, bytes], suffix: str = ".npy") -> bytes:
    """An archive whose checksums are right, whatever is in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name + suffix, content)
    return stream.getvalue()


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


_arrays = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.sampled_from(((), (0,), (2,), (2, *SHAPE), (0, *SHAPE), (2, 4), (2, 1, 4, 1))),
    st.sampled_from(("u1", "i8", "f4", "f8", "f2", "?", "c8", "U3", "S3", "M8[s]", "V4", "u8", ">f4", "i1")),
).map(_npy)


@st.composite
def _archives(draw: st.DrawFn, **members: bytes) -> bytes:
    """An archive of these members, a few of them left out, damaged or exchanged for any array."""
    changed = dict(members)
    for name in draw(st.lists(st.sampled_from(sorted(members)), max_size=3)):
        part = draw(st.none() | _damaged(members[name]) | _arrays)
        changed.pop(name, None)
        if part is not None:
            changed[name] = part
    return _zipped(changed)


IMAGES, LABELS = _npy(np.zeros((2, *SHAPE), np.uint8)), _npy(np.arange(2))
METADATA = {
    "schema_version": 1,
    "spec": asdict(SPEC),
    "config": asdict(SynthesisConfig(count=2, batch_size=2)),
    "snapshots": [asdict(SnapshotRecord(chain=0, step=15, loss=0.5, count=2))],
}
REPORT = {
    "schema_version": SCHEMA_VERSION,
    "images": {"source": "synthetic images", "count": 8, "chains": 1, "steps": 4, "passes": 4},
    "synthesis": asdict(SynthesisConfig()),
    "quantization": asdict(QuantizationConfig()),
    "equalized": "none",
    "input": asdict(SPEC),
    "seed": 0,
}
WORK = {"dffg": "0.1.0", "bits": "W4A4", "count": "8"}
DATA = _zipped({"images": IMAGES, "labels": LABELS})
CSV = b"file,label\na.png,0\nb.png,1\n"


def _load_labels(content: bytes) -> Any:
    folder = _folder() / "pictures"
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    (folder / "labels.csv").write_bytes(content)
    return load_data(folder, SPEC, labelled=True)


def _configure(options: dict[str, Any]) -> Any:
    """Every option of the three configurations, in the types that the command line makes."""
    errors = []
    for config in (SynthesisConfig, QuantizationConfig, LearningConfig):
        known = {name: value for name, value in options.items() if name in config.__dataclass_fields__}
        try:
            config(**known)
        except DffgError as error:
            errors.append(error)
    if errors:
        raise errors[0]


_several = st.lists(_text("x", "3", ",", ":", ".", "/", "-", like="3x4x4/8"), min_size=1, max_size=3).map("/".join)
_INPUTS = st.fixed_dictionaries(
    {"input_shape": st.sampled_from(("3x4x4/8", "2x2/3/4")) | _several},
    optional={
        "mean": st.sampled_from(("0.5", "0.5/0", "0.1,0.2,0.3/0")) | _several,
        "std": st.sampled_from(("0.5", "0.5/1")) | _several,
        "bounds": st.sampled_from(("0:1", "0:1/-1:1")) | _several,
    },
)


def _refuse_work(content: bytes) -> None:
    _written("work.json", content)
    refuse_other_work(_folder(), WORK)


_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.integers() for name in ("count", "batch_size", "steps", "burn_in", "keep_every", "first_last_bits")
        },
        **{name: st.floats() for name in ("step_size", "decay", "slack", "max_seconds", "percentile", "norm")},
        **{name: st.integers() for name in ("learning_images", "reconstruction_steps", "sensitivity_images")},
        "learning_seconds": st.floats(),
        "generator": st.sampled_from(("dffg", "zeroq", "noise", "nothing")),
        "bits": st.sampled_from(("mixed", "W8A8")) | _text("W", "A", "mixed"),
        "budget": st.sampled_from(("bits=4",)) | _text("size", "bops", "bits", "=", "x", "MB", "."),
        "candidate_bits": _text(",", "2", "4", "8"),
    },
)
RECIPE = b"model: a.b:c\nbits: W4A8\nimages: 8\nmean: [0.5, 0.25, 1e-3]\nbounds: 0:1\n"
JOBS = b"options: {images: 8}\nmodels: [a.b:c, {name: x, model: d.onnx}]\nschemes: [W8A8, {name: y, bits: W4A4}]\n"
_YAML_WORDS = (
    "model",
    "models",
    "jobs",
    "schemes",
    "name",
    "options",
    "bits",
    "images",
    "mean",
    ": ",
    "- ",
    "\n",
    "{",
    "}",
)
_YAML_MARKS = (
    "[",
    "]",
    ", ",
    "  ",
    "|",
    ">",
    "&a",
    "*a",
    "<<",
    "!!python/name:os.getcwd",
    "'",
    '"',
    "#",
    "%",
    "~",
    "---",
    "W4A8",
)


def _yaml(example: bytes) -> st.SearchStrategy[bytes]:
    words = _text(*_YAML_WORDS, *_YAML_MARKS).map(lambda text: text.encode("utf-8", "replace"))
    return _damaged(example) | words


PARSERS: dict[str, tuple[st.SearchStrategy[Any], Parse]] = {
    "bits": (_text("W", "A", "w", "a", "8", "4", "-", like="W4A8"), Scheme.parse),
    "budget": (
        _text("size=", "bops=", "bits=", "latency", "x", "MB", "kB", ".", "-", "0.5", "4", like="size=0.5x"),
        Budget.parse,
    ),
    "size": (_text("MB", "kB", "GB", "B", ".", "-", "8", like="1.5GB"), parse_bytes),
    "shape": (_text("x", "3", "224", "-", like="3x224x224"), lambda text: ImageSpec(shape=parse_shape(text))),
    "numbers": (
        _text(",", ".", "-", like="0.5,0.25,1e-3"),
        lambda text: ImageSpec(shape=(3, 2, 2), mean=parse_numbers(text)),
    ),
    "deviations": (
        _text(",", ".", "-", like="0.5,0.25,1e-3"),
        lambda text: ImageSpec(shape=(3, 2, 2), std=parse_numbers(text)),
    ),
    "bounds": (_text(":", ".", "-", like="-1:2.5"), lambda text: ImageSpec(shape=(3, 2, 2), bounds=parse_bounds(text))),
    "inputs": (_INPUTS, lambda options: describe_input(None, options)),
    "options": (_OPTIONS, _configure),
    "recipe.yaml": (_yaml(RECIPE), lambda content: recipe_file.read(_written("recipe.yaml", content), KNOWN)),
    "jobs.yaml": (_yaml(JOBS), lambda content: read_jobs(_written("jobs.yaml", content), KNOWN)),
    "labels.csv": (
        _damaged(CSV)
        | _text("file", "label", ",", "\n", '"', "a.png").map(lambda text: text.encode("utf-8", "replace")),
        _load_labels,
    ),
    "data.npz": (
        _damaged(DATA) | _archives(images=IMAGES, features=IMAGES, labels=LABELS),
        lambda content: load_data(_written("data.npz", content), SPEC, labelled=True),
    ),
    "description": (
        _changed(asdict(SPEC)).map(json.dumps) | _plain.map(json.dumps) | _text("{", "}", "[", ":", '"', like="{}"),
        ImageSpec.from_json,
    ),
    "images.npz": (
        st.tuples(_changed(METADATA), st.sampled_from(("images", "features")), _arrays | _damaged(IMAGES)).map(
            lambda parts: _zipped({"metadata": _npy(json.dumps(parts[0])), parts[1]: parts[2]})
        ),
        lambda content: SyntheticSet.load(_written("images.npz", content)),
    ),
    "work.json": (
        (_changed(WORK) | _plain).map(lambda document: json.dumps(document).encode())
        | _damaged(json.dumps(WORK).encode()),
        _refuse_work,
    ),
    "report.json": (
        _changed(REPORT).map(lambda document: json.dumps(document).encode()) | _damaged(json.dumps(REPORT).encode()),
        lambda content: load_report(_written("report.json", content)),
    ),
}


@cache
def _module() -> fx.GraphModule:
    return prepare(fold_batch_norms(captured("gray")))


@cache
def _states() -> dict[str, Tensor]:
    return small_conv().state_dict()


def _parameters() -> dict[str, bytes]:
    network = captured("gray")
    decided = decide(network, [torch.rand(2, *network.spec.shape)], QuantizationConfig())
    return {name: _npy(tensor) for name, tensor in tensors_of(decided.parameters).items()}


def _torch_bytes(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@cache
def _program() -> dict[str, bytes]:
    """Members of a network that torch.export has saved."""
    stream = io.BytesIO()
    torch.export.save(torch.export.export(small_conv().eval(), (torch.zeros(2, 3, 8, 8),)), stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@st.composite
def _programs(draw: st.DrawFn) -> bytes:
    """A saved network with bytes changed anywhere, or with members changed and checksums that are right."""
    members = dict(_program())
    if draw(st.booleans()):
        return draw(_damaged(_zipped(members, "")))
    for name in draw(st.lists(st.sampled_from(sorted(members)), max_size=2, unique=True)):
        is_document = name.endswith(".json")
        content = _changed(json.loads(members[name])).map(json.dumps) if is_document else _damaged(members[name])
        members[name] = draw(content | _plain.map(json.dumps))
    return _zipped(members, "")


def _load_checkpoint(content: bytes) -> Any:
    _written("state.pt", content)
    return Checkpoint(_folder(), "this").load("state")


# Those whose files torch makes; they take a moment to prepare.
HEAVY_PARSERS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Parse]] = {
    "parameters.npz": (
        lambda: _archives(**_parameters()),
        lambda content: load_parameters(_written("parameters.npz", content), _module()),
    ),
    "weights.pth": (
        lambda: _damaged(_torch_bytes(_states())),
        lambda content: load_weights(small_conv(), _written("weights.pth", content)),
    ),
    "weights.safetensors": (
        lambda: _damaged(safetensors.torch.save(_states())),
        lambda content: load_weights(small_conv(), _written("weights.safetensors", content)),
    ),
    "program.pt2": (_programs, lambda content: refuse_code(_written("program.pt2", content))),
    "checkpoint": (
        lambda: _damaged(_torch_bytes({"subject": "this", "state": {"done": 1}})).map(sealed),
        _load_checkpoint,
    ),
}
_PART = 2000
NAMES = (*PARSERS, *HEAVY_PARSERS)


def fuzz(name: str, inputs: int) -> int:
    """So many inputs for a parser; how many of them it refused. Anything but a DffgError gets out of here.

    In parts with seeds of their own: hypothesis remembers all it has tried, which takes ever longer.
    """
    parts = [min(_PART, inputs - start) for start in range(0, inputs, _PART)]
    return sum(_fuzz(name, count, index) for index, count in enumerate(parts))


def _fuzz(name: str, inputs: int, number: int) -> int:
    make, parse = HEAVY_PARSERS[name] if name in HEAVY_PARSERS else (lambda: PARSERS[name][0], PARSERS[name][1])
    strategy = make()
    refused = 0

    @seed(number)
    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(value: Any) -> None:
        nonlocal refused
        try:
            parse(value)
        except DffgError:
            refused += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt()
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--inputs", type=int, default=100_000)
    arguments = parser.parse_args()
    for name in arguments.parsers or NAMES:
        started = time.monotonic()
        refused = fuzz(name, arguments.inputs)
        seconds = time.monotonic() - started
        print(f"{name}: {arguments.inputs} inputs, {refused} refused, no other error ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
