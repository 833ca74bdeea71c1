"""Whole networks through ONNX files, and files that must not be read."""

from __future__ import annotations

import contextlib
import io
import random as chance
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from benchmarks.digits import DigitsTransformer
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

import dffg
from dffg.config import SynthesisConfig
from dffg.errors import CaptureError, DffgError, InputError, StatisticsError
from dffg.export.onnx import write_float
from dffg.graph.captured import capture
from dffg.graph.ends import input_names, output_names, split_ends
from dffg.graph.patches import patch_sources
from dffg.models.load import load_model
from dffg.onnx_import.load import load_onnx
from dffg.spec import ImageSpec, JointSpec
from dffg.synthesis.patches import PatchObjective
from dffg.synthesis.synthesize import synthesize_set
from tests.export import exported
from tests.networks import NETWORKS, captured, inputs, network, randomize, small_conv
from tests.onnx_import.graphs import model, node, random, run
from tests.synthesis.test_patches import group_norm

SPEC = ImageSpec(shape=(3, 8, 8))
KEPT = {
    "new": {"dynamo": True, "optimize": False},
    "old": {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE},
    "old-unfolded": {"dynamo": False, "do_constant_folding": False},
}
FOLDED: dict[str, dict[str, Any]] = {"new": {"dynamo": True}, "old": {"dynamo": False}}


def write(module: nn.Module, shape: tuple[int, ...], path: Path, *, dynamic: bool = True, **options: Any) -> Path:
    free: dict[str, Any] = {}
    if dynamic:
        free = {"dynamic_shapes": ({0: Dim.DYNAMIC},)} if options["dynamo"] else {"dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        example = torch.zeros(2 if dynamic else 1, *shape)
        torch.onnx.export(module.eval(), (example,), path, input_names=["x"], external_data=False, **free, **options)
    return path


@pytest.mark.parametrize(
    ("name", "exporter"), [*((name, "new") for name in NETWORKS), ("residual", "old"), ("shared", "old-unfolded")]
)
def test_a_network_comes_back_from_its_file(name: str, exporter: str, tmp_path: Path) -> None:
    original, shape = network(name)
    loaded = load_onnx(write(original, shape, tmp_path / "model.onnx", **KEPT[exporter]))
    assert loaded.spec == ImageSpec(shape=shape, source="default")
    found, expected = capture(loaded.module, spec=loaded.spec), captured(name)
    x = inputs(shape, 5)
    assert torch.allclose(found.module(x), expected.module(x), rtol=1e-5, atol=1e-6)
    for norm, other in zip(found.batch_norms, expected.batch_norms, strict=True):
        assert torch.equal(norm.running_mean, other.running_mean)
        assert torch.equal(norm.running_var, other.running_var)
        assert norm.eps == other.eps


@pytest.mark.parametrize(
    ("name", "exporter"), [("conv", "new"), ("residual", "old"), ("inverted-residual", "old-unfolded")]
)
def test_layers_keep_their_names(name: str, exporter: str, tmp_path: Path) -> None:
    original, shape = network(name)
    loaded = load_onnx(write(original, shape, tmp_path / "model.onnx", **KEPT[exporter]))
    norms = capture(loaded.module, spec=loaded.spec).batch_norms
    assert tuple(norm.name for norm in norms) == NETWORKS[name][2]


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_synthetic_images_are_those_of_the_module(exporter: str, tmp_path: Path) -> None:
    """Signs of gradients are not forgiving: the images are the same because nothing differs, to the last bit."""
    original, shape = network("inverted-residual")
    loaded = load_onnx(write(original, shape, tmp_path / "model.onnx", **KEPT[exporter]))
    config = SynthesisConfig(count=8, batch_size=8, seed=3)
    made = [synthesize_set(capture(module, spec=SPEC), config) for module in (loaded.module, original)]
    assert np.abs(made[0].inputs - made[1].inputs).max() <= 1e-3


def test_quantized_from_a_file_as_from_the_module(tmp_path: Path) -> None:
    original, shape = network("inverted-residual")
    loaded = load_model(str(write(original, shape, tmp_path / "model.onnx", **KEPT["new"])))
    config = SynthesisConfig(count=16, batch_size=8)
    for network_, name in ((loaded.model, "file"), (original, "module")):
        result = dffg.quantize(network_, tmp_path / name, spec=SPEC, synthesis=config)
        assert result.verified
    x = inputs(shape, 64).numpy()
    answers = [run(onnx.load(tmp_path / name / "model.onnx"), x, "input")[0] for name in ("file", "module")]
    assert (answers[0].argmax(1) == answers[1].argmax(1)).mean() >= 0.99
    assert [layer.name for layer in result.layers] == ["stem.0", "block.0", "block.3", "block.6", "head.3"]


# BatchNorm


@pytest.mark.parametrize("exporter", FOLDED)
def test_folded_batch_norm_says_how_to_keep_it(exporter: str, tmp_path: Path) -> None:
    original, shape = network("residual")
    path = write(original, shape, tmp_path / "model.onnx", **FOLDED[exporter])
    with pytest.raises(StatisticsError, match=r"model.onnx: it has no BatchNormalization. .*optimize=False.*PRESERVE"):
        load_onnx(path)


def test_folded_batch_norm_is_missed_before_a_softmax_too(tmp_path: Path) -> None:
    original, shape = network("residual")
    path = write(nn.Sequential(original, nn.Softmax(1)), shape, tmp_path / "model.onnx", **FOLDED["new"])
    with pytest.raises(StatisticsError, match="it has no BatchNormalization"):
        load_onnx(path)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_a_transformer_is_compared_by_its_patches(exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = DigitsTransformer()
    loaded = load_onnx(write(original, (1, 8, 8), tmp_path / "model.onnx", **KEPT[exporter]))
    found = capture(loaded.module, spec=loaded.spec)
    assert len(patch_sources(found.module)) == 2
    assert loaded.notes == ()
    assert "2 attentions" in found.notes[-1]
    x = inputs((1, 8, 8), 5)
    assert torch.allclose(found.module(x), original.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_groups_of_channels_are_compared_as_in_the_module(exporter: str, tmp_path: Path) -> None:
    """Exporters lay them in rows to normalize them: what is compared must still be the map."""
    torch.manual_seed(0)
    original = group_norm()
    loaded = load_onnx(write(original, (3, 8, 8), tmp_path / "model.onnx", **KEPT[exporter]))
    networks = [capture(module, spec=SPEC) for module in (loaded.module, original)]
    x = inputs((3, 8, 8), 5)
    answers, losses = zip(*((net.module(x), PatchObjective(net.module, SPEC)(x)) for net in networks))
    assert torch.allclose(*answers, rtol=1e-4, atol=1e-5)
    assert torch.allclose(*losses, rtol=1e-4)
    assert [len(patch_sources(net.module)) for net in networks] == [2, 2]


class Reader(nn.Module):
    """Columns of a picture in a row, read in both directions."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.memory = kind(8, 6, bidirectional=True)
        self.answer = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.eye(x).mean(2).permute(2, 0, 1)
        return self.answer(self.memory(columns)[0][-1])


@pytest.mark.parametrize(("kind", "exporter"), [(nn.LSTM, "new"), (nn.LSTM, "old"), (nn.GRU, "new"), (nn.GRU, "old")])
def test_what_remembers_comes_back_from_its_file(
    kind: type[nn.LSTM] | type[nn.GRU], exporter: str, tmp_path: Path
) -> None:
    original = randomize(Reader(kind))
    loaded = load_onnx(write(original, (3, 8, 8), tmp_path / "model.onnx", **KEPT[exporter]))
    found, x = capture(loaded.module, spec=loaded.spec), inputs((3, 8, 8), 5)
    assert torch.allclose(found.module(x), original.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_file_that_remembers_is_quantized(tmp_path: Path) -> None:
    path = write(randomize(Reader(nn.LSTM)), (3, 8, 8), tmp_path / "model.onnx", **KEPT["new"])
    config = SynthesisConfig(count=16, batch_size=8)
    result = dffg.quantize(load_model(str(path)).model, tmp_path / "out", spec=SPEC, synthesis=config)
    assert result.verified
    assert result.kernels.integer == 2
    assert any("lstm" in name for name in result.float_operations)


def test_partly_folded_file_works_and_says_so(tmp_path: Path) -> None:
    original, _ = network("conv")
    original[0], original[1] = nn.utils.fuse_conv_bn_eval(original[0], original[1]), nn.Identity()
    loaded = load_model(str(write(original, (3, 8, 8), tmp_path / "model.onnx", **KEPT["new"])))
    assert loaded.notes == (
        "the ONNX file has 1 BatchNorm layers beside 3 convolutions and matrix products; followed by one: 3",
    )
    assert len(capture(loaded.model, spec=loaded.spec).batch_norms) == 1


def test_an_unfolded_file_names_the_layers_without_batch_norm(tmp_path: Path) -> None:
    original, shape = network("inverted-residual")
    loaded = load_onnx(write(original, shape, tmp_path / "model.onnx", **KEPT["old"]))
    counts = "the ONNX file has 4 BatchNorm layers beside 5 convolutions and matrix products"
    assert loaded.notes == (f"{counts}; not followed by one: head.3",)


@pytest.mark.parametrize(("count", "says"), [(8, ""), (11, " and 3 more")])
def test_no_more_than_eight_layers_are_named(count: int, says: str, tmp_path: Path) -> None:
    folded = [part for _ in range(count) for part in (nn.Conv2d(3, 3, 1), nn.ReLU())]
    kept = [part for _ in range(count) for part in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))]
    path = write(nn.Sequential(*folded, *kept), (3, 4, 4), tmp_path / "model.onnx", **KEPT["new"])
    assert load_onnx(path).notes[0].endswith(f"; not followed by one: 0, 2, 4, 6, 8, 10, 12, 14{says}")


def test_a_product_with_a_bias_is_followed_by_the_batch_norm_behind_the_bias(tmp_path: Path) -> None:
    original = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm2d(3))
    path = write(original, (3, 4, 4), tmp_path / "model.onnx", **KEPT["new"])
    assert {"MatMul", "Add"} <= {node.op_type for node in onnx.load(path).graph.node}
    assert load_onnx(path).notes[0].endswith("; not followed by one: none")


# The input


@pytest.mark.parametrize(("name", "exporter"), [("conv", "new"), ("inverted-residual", "old"), ("volumes", "new")])
def test_fixed_batch_is_freed(name: str, exporter: str, tmp_path: Path) -> None:
    original, shape = network(name)
    path = write(original, shape, tmp_path / "model.onnx", dynamic=False, **KEPT[exporter])
    loaded, x = load_onnx(path), inputs(shape, 3)
    assert torch.allclose(capture(loaded.module, spec=loaded.spec).module(x), original(x), rtol=1e-5, atol=1e-6)


def norm_and(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = ("b", 3, 4, 4), **options: Any) -> onnx.ModelProto:
    """A graph of a BatchNorm, whose result is `n`, and what follows."""
    constants = {name: np.abs(random(3, seed=index)) + 0.5 for index, name in enumerate(("s", "o", "m", "v"))}
    first = node("BatchNormalization", ["x", "s", "o", "m", "v"], ["n"])
    return model([first, *nodes], shape, constants | options.pop("constants", {}), **options)


def saved(made: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(with_shapes(made), path)
    return path


def with_shapes(made: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants to know the shapes of outputs."""
    return onnx.shape_inference.infer_shapes(made)


def test_batch_that_is_fixed_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Examples beside each other are taken for one."""
    nodes = [node("ReduceMean", ["n", "all"], ["r"]), node("Add", ["n", "r"], ["y"])]
    made = norm_and(*nodes, shape=(1, 3, 4, 4), constants={"all": np.array([0, 1, 2, 3])})
    with pytest.raises(CaptureError, match=r"its batch is fixed at 1; export it with a dynamic batch"):
        load_onnx(saved(made, tmp_path))


def test_open_sizes_must_be_given(tmp_path: Path) -> None:
    loaded = load_onnx(saved(norm_and(node("Relu", ["n"], ["y"]), shape=("b", 3, "h", "w")), tmp_path))
    assert loaded.spec is None
    x = inputs((3, 5, 6))
    assert torch.allclose(capture(loaded.module, input_shape=(3, 5, 6)).module(x), loaded.module(x))


def test_description_that_dffg_wrote_is_known(tmp_path: Path) -> None:
    made = norm_and(node("Relu", ["n"], ["y"]))
    spec = ImageSpec(shape=(3, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5,), bounds=(0.0, 255.0), source="the test")
    path = tmp_path / "float.onnx"
    write_float(exported("batch-norm").quantized.float_module, spec=ImageSpec(shape=(3, 8, 8), std=(0.5,)), path=path)
    helper.set_model_props(made, {"dffg.input": _described(spec)})
    assert load_onnx(saved(made, tmp_path)).spec == spec
    assert load_onnx(path).spec == ImageSpec(shape=(3, 8, 8), std=(0.5,))


def _described(spec: ImageSpec) -> str:
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(spec))


@pytest.mark.parametrize(
    "description", ["{", '{"shape": 3}', '{"shape": [3, 4, 4], "color": 1}', "[1]", '"x"', "[" * 100_000]
)
def test_damaged_description_is_named(description: str, tmp_path: Path) -> None:
    made = norm_and(node("Relu", ["n"], ["y"]))
    helper.set_model_props(made, {"dffg.input": description})
    with pytest.raises(InputError, match=r"description of its input \(dffg.input\) is damaged"):
        load_onnx(saved(made, tmp_path))


def test_input_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    made = norm_and(node("Relu", ["n"], ["y"]), kind=TensorProto.UINT8)
    with pytest.raises(InputError, match="its input x is uint8; export a network that takes float32"):
        load_onnx(saved_unchecked(made, tmp_path))


class Meeting(nn.Module):
    """Two inputs, of which the second is used first, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, picture: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.vector(measured)
        x = self.tower(picture) * vector[:, :, None, None]
        return x.mean((2, 3)), vector


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dynamo", [True, False])
def test_several_inputs_and_outputs_keep_their_names(dynamo: bool, count: int, tmp_path: Path) -> None:
    """With a batch that may vary, and with one that the file fixes at 1."""
    original, path = randomize(Meeting()), tmp_path / "model.onnx"
    names = {"input_names": ["picture", "a:b"], "output_names": ["scores", "found"]}
    free: dict[str, Any] = {"dynamic_shapes": ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})} if dynamo else {}
    free = free or {"dynamic_axes": {name: {0: "batch"} for name in names["input_names"]}}
    example = (torch.zeros(count, 3, 8, 8), torch.zeros(count, 5))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        kept = KEPT["new" if dynamo else "old"]
        torch.onnx.export(original, example, path, **names, **kept, **(free if count > 1 else {}))
    loaded = load_onnx(path)
    assert isinstance(loaded.spec, JointSpec)
    assert [part.shape for part in loaded.spec.inputs] == [(3, 8, 8), (5,)]
    found = capture(loaded.module, spec=loaded.spec)
    x, y = inputs((3, 8, 8), 3), inputs((5,), 3)
    answers = split_ends(found.module)(x, y)
    for answer, expected in zip(answers, original(x, y), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)
    assert input_names(found.module, "") == ["picture", "a_b"]
    assert output_names(found.module, "") == ["scores", "found"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [(("in", "class"), ["in_", "class_"]), (("0", "a:b"), ["_0", "a_b"]), (("a:b", "a_b"), ["a_b", "a_b_"])],
)
def test_inputs_may_be_called_as_no_argument_of_a_function_is(
    names: tuple[str, str], shown: list[str], tmp_path: Path
) -> None:
    made = norm_and(node("Add", ["n", names[1]], ["y"]))
    made.graph.input[0].name = made.graph.node[0].input[0] = names[0]
    made.graph.input.append(helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ("b", 3, 4, 4)))
    loaded = load_onnx(saved(made, tmp_path))
    found, given = split_ends(capture(loaded.module, spec=loaded.spec).module), [inputs((3, 4, 4))] * 2
    assert [placed.target for placed in found.graph.nodes if placed.op == "placeholder"] == shown
    torch.testing.assert_close(found(*given), loaded.module(*given))


def test_one_of_several_inputs_that_is_no_number_is_named(tmp_path: Path) -> None:
    made = norm_and(node("Gather", ["n", "z"], ["y"]))
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT64, ("b", 4)))
    with pytest.raises(InputError, match="its input z is int64; export a network that takes float32"):
        load_onnx(saved(made, tmp_path))


def test_an_input_of_several_that_the_file_leaves_open_must_be_described(tmp_path: Path) -> None:
    made = norm_and(node("Add", ["n", "z"], ["y"]))
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("b", 3, "h", 4)))
    loaded = load_onnx(saved(made, tmp_path))
    assert loaded.spec is None
    assert capture(loaded.module, input_shape=[(3, 4, 4), (3, 4, 4)]).module(torch.zeros(2, 96)).shape == (2, 3, 4, 4)


# Files that are refused


def saved_unchecked(made: onnx.ModelProto, tmp_path: Path) -> Path:
    made.graph.output[0].type.tensor_type.shape.SetInParent()
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_quantized_file_is_refused() -> None:
    with pytest.raises(InputError, match="it is quantized already; give the float network"):
        load_onnx(exported("plain").path)


def test_old_version_is_refused(tmp_path: Path) -> None:
    made = norm_and(node("Relu", ["n"], ["y"]), opset=6)
    made.ir_version = 3
    made.graph.input.extend(
        helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, entry.dims) for entry in made.graph.initializer
    )
    with pytest.raises(InputError, match="it has opset 6; export it with 7 or later"):
        load_onnx(saved_unchecked(made, tmp_path))


def test_weights_are_not_replaced(tmp_path: Path) -> None:
    path = saved(norm_and(node("Relu", ["n"], ["y"])), tmp_path)
    with pytest.raises(InputError, match=r"a .onnx file holds its own weights; leave --weights out"):
        load_model(str(path), weights=tmp_path / "weights.pth")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing.onnx"):
        load_model(str(tmp_path / "nothing.onnx"))


def external(tmp_path: Path, location: str) -> Path:
    """A file in `model/` whose statistics are said to lie at `location`."""
    made = norm_and(node("Relu", ["n"], ["y"]))
    (tmp_path / "model").mkdir()
    for entry in made.graph.initializer:
        content = numpy_helper.to_array(entry).tobytes()
        entry.ClearField("raw_data")
        entry.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
            entry.external_data.add(key=key, value=value)
    (tmp_path / "secret").write_bytes(content)
    (tmp_path / "model" / "weights").write_bytes(content)
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(with_shapes(made).SerializeToString())
    return path


def test_weights_beside_a_file_are_read(tmp_path: Path) -> None:
    loaded = load_onnx(external(tmp_path, "weights"))
    assert torch.isfinite(loaded.module(torch.ones(2, 3, 4, 4))).all()


@pytest.mark.parametrize("location", ["../secret", "{absolute}/secret", "link", "sub/../../secret"])
def test_nothing_outside_its_directory_is_read(location: str, tmp_path: Path) -> None:
    path = external(tmp_path, location.format(absolute=tmp_path))
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "sub").mkdir()
    with pytest.raises(InputError, match=r"model.onnx is not a readable ONNX file"):
        load_onnx(path)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    return write(randomize(small_conv()), (3, 8, 8), path, **KEPT["new"]).read_bytes()


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 20))
def test_truncated_file_is_refused(share: float, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DffgError):
        load_onnx(tmp_path / "model.onnx")


def test_a_file_of_more_operations_than_any_network_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    monkeypatch.setattr("dffg.graph.nodes._MOST_OPERATIONS", 5)
    monkeypatch.setattr("dffg.onnx_import.load.OnnxModule", None)
    with pytest.raises(InputError, match=r"model.onnx: the network has \d+ operations, and at most 5 are taken"):
        load_onnx(tmp_path / "model.onnx")


def test_damaged_file_gives_an_error_that_says_so(content: bytes, tmp_path: Path) -> None:
    """Or a network, where what was hit is a weight."""
    generator, refused = chance.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 3))):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        (tmp_path / "model.onnx").write_bytes(damaged)
        try:
            loaded = load_onnx(tmp_path / "model.onnx")
            capture(loaded.module, spec=loaded.spec or SPEC)
        except DffgError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    "name",
    [
        *('x");__import__("os").mkdir("executed")#', "forward.weight", "a.b.c", "\n", "conv/w:0"),
        *("class.weight", "model/in/kernel:0", "None", "lambda/None"),
    ],
)
def test_names_of_a_file_do_no_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured graphs are compiled from text that has names in it."""
    monkeypatch.chdir(tmp_path)
    convolve = node("Conv", ["n", name], ["y"], name=name)
    made = norm_and(convolve, constants={name: random(4, 3, 1, 1)})
    loaded, x = load_onnx(saved(made, tmp_path)), inputs((3, 4, 4))
    answer = capture(loaded.module, spec=loaded.spec).module(x)
    np.testing.assert_allclose(answer.numpy(), run(made, x.numpy())[0], rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "executed").exists()


def test_matrix_product_and_sum_are_one_layer(tmp_path: Path) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.linear = nn.BatchNorm2d(3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.bn(x))

    original = randomize(Sequence())
    loaded = load_onnx(write(original, (3, 4, 4), tmp_path / "model.onnx", **KEPT["new"]))
    found = capture(loaded.module, spec=loaded.spec)
    targets = [str(made.target) for made in found.module.graph.nodes if made.op == "call_function"]
    assert targets == ["aten.batch_norm.default", "aten.linear.default"]
    x = inputs((3, 4, 4))
    assert torch.allclose(found.module(x), original(x), atol=1e-6)
