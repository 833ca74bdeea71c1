"""Every operator gives what ONNX Runtime gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn
from torch.export import Dim

from dffg.errors import CaptureError
from dffg.onnx_import.module import OnnxModule
from dffg.onnx_import.numbers import NUMBER_OPERATORS
from dffg.onnx_import.operators import OLDEST_VERSION, TENSOR_OPERATORS
from tests.onnx_import.graphs import OPSET, Array, model, node, random, run


@dataclass(frozen=True)
class Case:
    """One node: further inputs (None: left out, "x": the first again), attributes, shape of its first input."""

    operator: str
    shape: tuple[int, ...] = (2, 3, 5, 6)
    others: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = OPSET
    outputs: int = 1
    spread: float = 2.0

    def __str__(self) -> str:
        given = [*(f"{key}={value}" for key, value in self.attributes.items()), f"opset{self.opset}"]
        return re.sub(r"[\[\]' ]", "", "-".join([self.operator, "x".join(map(str, self.shape)), *given]))


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def number(value: float) -> Array:
    return np.array(value, dtype=np.float32)


def case(operator: str, *others: Any, **options: Any) -> Case:
    named = {key: options.pop(key) for key in ("shape", "opset", "outputs", "spread") if key in options}
    return Case(operator, others=others, attributes=options, **named)


ACTIVATIONS = [
    *(case(name) for name in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Elu", "Selu")),
    *(case(name) for name in ("Softplus", "Tanh", "Erf", "Gelu", "Softmax", "LogSoftmax", "Neg", "Abs", "Exp")),
    *(case(name) for name in ("Identity", "Floor", "Ceil", "Reciprocal")),
    case("LeakyRelu", alpha=0.3),
    case("HardSigmoid", alpha=1 / 6, beta=0.5),
    case("HardSigmoid", alpha=0.3, beta=0.4),
    case("Elu", alpha=0.7),
    case("Selu", alpha=1.5, gamma=1.1),
    case("Gelu", approximate="tanh"),
    case("Softmax", axis=1),
    case("Softmax", axis=2, opset=11),
    case("Softmax", opset=11),
    case("LogSoftmax", axis=1, opset=12),
    case("LogSoftmax", axis=2, opset=13),
    case("PRelu", random(1)),
    case("PRelu", random(3, 1, 1)),
    case("PRelu", random(5, 6)),
    case("Clip", number(-0.5), number(0.7)),
    case("Clip", number(0), number(6), spread=6),
    case("Clip", number(0)),
    case("Clip", None, number(0.25)),
    case("Clip"),
    case("Clip", min=-0.5, max=0.7, opset=10),
    case("Dropout", number(0.4)),
    case("Dropout", ratio=0.4, opset=11),
]
ARITHMETIC = [
    *(case(name, random(1, 3, 5, 6, seed=1)) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")),
    *(case(name, random(3, 1, 1, seed=1)) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")),
    *(case(name, number(0.7)) for name in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max") if name != "Pow"),
    case("Pow", number(2)),
    case("Pow", number(3)),
    case("Pow", ints(2)),
    case("Max", number(0.1), number(0.2)),
    case("CastLike", random(1)),
    case("Cast", to=1),
]
CONVOLUTIONS = [
    case("Conv", random(4, 3, 3, 3), random(4), shape=(2, 3, 7, 8)),
    case("Conv", random(4, 3, 3, 2), shape=(2, 3, 7, 8), pads=[1, 0, 1, 0], strides=[2, 1]),
    case("Conv", random(4, 3, 3, 3), shape=(2, 3, 9, 8), dilations=[2, 1]),
    case("Conv", random(4, 3, 3, 3), shape=(2, 3, 7, 8), pads=[0, 1, 1, 2]),
    case("Conv", random(4, 1, 3, 3), random(4), shape=(2, 4, 7, 8), group=4, pads=[1, 1, 1, 1]),
    case("Conv", random(6, 2, 3, 3), shape=(2, 4, 7, 8), group=2, kernel_shape=[3, 3]),
    *(
        case("Conv", random(4, 3, 3, 4), shape=(2, 3, 7, 8), strides=[2, 2], auto_pad=mode)
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    ),
    case("Conv", random(4, 3, 3), random(4), shape=(2, 3, 9), pads=[1, 1]),
    case("Conv", random(4, 3, 3, 3, 3), shape=(2, 3, 5, 6, 4), pads=[1, 1, 1, 1, 1, 1]),
    case("ConvTranspose", random(3, 4, 3, 3), random(4), shape=(2, 3, 5, 6)),
    case("ConvTranspose", random(3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", random(3, 4, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    *(
        case("ConvTranspose", random(3, 4, 3, 3), random(4), strides=[2, 2], output_shape=sizes)
        for sizes in ([10, 12], [12, 14], [12, 9])
    ),
    case("ConvTranspose", random(3, 4, 3, 3), strides=[2, 2], output_shape=[12, 14], auto_pad="SAME_UPPER"),
    *(
        case("ConvTranspose", random(3, 4, 3, 3), strides=[2, 2], auto_pad=mode)
        for mode in ("SAME_UPPER", "SAME_LOWER")
    ),
    case("ConvTranspose", random(4, 2, 3, 3), shape=(2, 4, 5, 6), group=2, dilations=[2, 1]),
    case("ConvTranspose", random(3, 4, 3), shape=(2, 3, 9), strides=[2]),
]
PRODUCTS = [
    case("Gemm", random(7, 4), random(4), shape=(2, 7)),
    case("Gemm", random(4, 7), random(4), shape=(2, 7), transB=1),
    case("Gemm", random(4, 7), random(1, 4), shape=(2, 7), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", random(4, 7), number(0.5), shape=(2, 7), transB=1, beta=0.5),
    case("Gemm", random(7, 4), shape=(2, 7)),
    case("MatMul", random(7, 4), shape=(2, 7)),
    case("MatMul", random(7, 4), shape=(2, 5, 7)),
    case("MatMul", random(3, 7, 4), shape=(2, 3, 5, 7)),
    case("MatMul", random(7), shape=(2, 5, 7)),
]
NORMS = [
    case("BatchNormalization", random(3), random(3, seed=1), random(3, seed=2), np.abs(random(3, seed=3)) + 0.5),
    case("BatchNormalization", *(np.abs(random(3, seed=seed)) for seed in range(4)), epsilon=0.1, opset=9),
    case("GroupNormalization", random(4), random(4, seed=1), num_groups=2, shape=(2, 4, 5, 6), epsilon=1e-2),
    case("GroupNormalization", random(2), random(2, seed=1), num_groups=2, shape=(2, 4, 5, 6), opset=18),
    case("InstanceNormalization", random(3), random(3, seed=1), epsilon=1e-2),
    case("LayerNormalization", random(6), random(6, seed=1)),
    case("LayerNormalization", random(5, 6), axis=2, epsilon=1e-2),
    case("LayerNormalization", random(1), random(6, seed=1)),
    case("LayerNormalization", random(6), number(0.5)),
    case("LayerNormalization", random(6), random(5, 1, seed=1), axis=2),
    case("LayerNormalization", random(3, 1, 6), random(1, 1, 6, seed=1)),
    case("LayerNormalization", random(1, 6)),
    case("LRN", size=3, alpha=0.5, beta=0.6, bias=1.5, shape=(2, 7, 5, 6)),
    case("LRN", size=5, shape=(2, 7, 5, 6)),
]
SEQUENCES = [
    *(
        case("LSTM", *values, shape=(6, 2, 5), outputs=3, hidden_size=4)
        for values in (
            (random(1, 16, 5), random(1, 16, 4, seed=1)),
            (random(1, 16, 5), random(1, 16, 4, seed=1), random(1, 32, seed=2)),
            (
                *(random(1, 16, 5), random(1, 16, 4, seed=1), random(1, 32, seed=2), None),
                *(random(1, 2, 4, seed=3), random(1, 2, 4, seed=4)),
            ),
        )
    ),
    case(
        *("LSTM", random(2, 16, 5), random(2, 16, 4, seed=1), random(2, 32, seed=2)),
        **{"shape": (6, 2, 5), "outputs": 3, "hidden_size": 4, "direction": "bidirectional"},
    ),
    case(
        *("GRU", random(1, 12, 5), random(1, 12, 4, seed=1), random(1, 24, seed=2)),
        **{"shape": (6, 2, 5), "outputs": 2, "hidden_size": 4, "linear_before_reset": 1},
    ),
    case(
        *("GRU", random(2, 12, 5), random(2, 12, 4, seed=1), None, None, random(2, 2, 4, seed=3)),
        **{"shape": (6, 2, 5), "outputs": 2, "hidden_size": 4, "linear_before_reset": 1, "direction": "bidirectional"},
    ),
]
POOLS = [
    *(
        case(kind, kernel_shape=[3, 3], strides=[2, 2], shape=(2, 3, *sizes), **options)
        for kind in ("MaxPool", "AveragePool")
        for sizes in ((7, 8), (8, 9))
        for options in (
            {},
            {"pads": [1, 1, 1, 1]},
            {"pads": [0, 0, 1, 1]},
            {"pads": [1, 0, 0, 1]},
            {"pads": [2, 1, 2, 1]},
            {"ceil_mode": 1},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER"},
        )
    ),
    case("MaxPool", kernel_shape=[2, 2], shape=(2, 3, 7, 8), dilations=[2, 1]),
    case("MaxPool", kernel_shape=[3], shape=(2, 3, 9), strides=[2], ceil_mode=1),
    case("MaxPool", kernel_shape=[2, 2, 2], shape=(2, 3, 4, 6, 4), strides=[2, 2, 2]),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 2], count_include_pad=1),
    case("AveragePool", kernel_shape=[3], shape=(2, 3, 9), strides=[2]),
    *(
        case(kind, kernel_shape=[2, 4], strides=[3, 4], shape=(2, 3, 9, 6), pads=[1, 0, 1, 3], ceil_mode=1, **options)
        for kind, options in (("AveragePool", {}), ("AveragePool", {"count_include_pad": 1}))
    ),
    case("MaxPool", kernel_shape=[3, 2], strides=[3, 1], shape=(2, 3, 6, 7), pads=[2, 0, 2, 1], ceil_mode=1),
    case("GlobalAveragePool"),
    case("GlobalAveragePool", shape=(2, 3, 7)),
    case("GlobalMaxPool"),
    *(case(name, ints(2, 3)) for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    *(case(name, ints(-1), keepdims=0) for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    case("ReduceMean", axes=[1], opset=13),
    case("ReduceSum", axes=[1, 2], keepdims=0, opset=11),
    case("ReduceSum", noop_with_empty_axes=1),
]
SHAPES = [
    case("Flatten"),
    case("Flatten", axis=2),
    case("Flatten", axis=-1),
    case("Reshape", ints(0, -1)),
    case("Reshape", ints(-1, 5, 18)),
    case("Reshape", ints(0, 0, 30)),
    case("Transpose", perm=[0, 2, 3, 1]),
    case("Squeeze", ints(1, 3), shape=(2, 1, 5, 1)),
    case("Squeeze", ints(-1), shape=(2, 3, 1)),
    case("Squeeze", axes=[1], shape=(2, 1, 5), opset=11),
    case("Squeeze", shape=(2, 1, 5, 1)),
    case("Unsqueeze", ints(1, -1)),
    case("Unsqueeze", axes=[2, 0], opset=11),
    case("Concat", "x", axis=1),
    case("Split", ints(1, 2), axis=1, outputs=2),
    case("Split", axis=3, num_outputs=4, outputs=4, shape=(2, 3, 5, 7)),
    case("Split", axis=3, outputs=3, opset=13),
    case("Split", split=[1, 2], axis=1, outputs=2, opset=11),
    case("Slice", ints(1, 0), ints(3, 2**62), ints(2, 3)),
    case("Slice", ints(-3), ints(-1), ints(-1)),
    case("Slice", ints(0), ints(5), ints(3), ints(2)),
    case("Slice", ints(-1), ints(-(2**62)), ints(3), ints(-2)),
    case("Slice", starts=[1], ends=[4], axes=[2], opset=9),
    case("Gather", ints(2, 0, -1), axis=2),
    case("Gather", np.array(1), axis=1),
    case("Gather", ints(1, 0, 2, 1).reshape(2, 2), axis=3),
    case("Expand", ints(1, 3, 5, 6), shape=(2, 3, 1, 6)),
    case("Pad", ints(0, 0, 1, 2, 0, 0, 3, 0)),
    case("Pad", ints(0, 0, 1, 0, 0, 0, 0, 2), number(1.5)),
    case("Pad", ints(0, 1, 0, 0, 0, 2, 0, 0)),
    case("Pad", ints(1, 2), None, ints(3)),
    *(
        case("Pad", ints(*pads), mode=mode, shape=(2, 3, 5, 6)[: len(pads) // 2])
        for mode in ("reflect", "edge", "wrap")
        for pads in (
            (0, 0, 1, 2, 0, 0, 2, 1),
            (0, 0, 0, 1, 0, 0, 0, 2),
            (0, 0, 2, 0, 0, 0, 1, 0),
            (0, 1, 0, 0, 0, 2, 0, 0),
            (0, 1, 2, 0, 0, 2, 0, 1),
            (0, 0, 0, 0, 0, 0, 0, 0),
            (0, 1, 0, 2),
            (0, 0, 1, 0, 0, 2),
            (0, 1, 0, 0, 1, 0),
        )
    ),
    case("Pad", ints(1, 2), None, ints(-1), mode="edge"),
    case("Pad", ints(0, 0, 0, 0, 1, 0, 0, 1, 0, 0), mode="edge", shape=(2, 3, 4, 5, 6)),
    case("Pad", pads=[0, 0, 1, 2, 0, 0, 2, 1], value=0.5, opset=10),
    case("DepthToSpace", blocksize=2, shape=(2, 8, 3, 4)),
    case("DepthToSpace", blocksize=2, mode="CRD", shape=(2, 8, 3, 4)),
    case("SpaceToDepth", blocksize=2, shape=(2, 3, 4, 6)),
]
RESIZES = [
    *(
        case(
            "Resize",
            None,
            number(1) * np.array(scales, dtype=np.float32),
            mode=mode,
            coordinate_transformation_mode=coordinates,
            **({"nearest_mode": rounding} if mode == "nearest" else {}),
        )
        for scales in ((1, 1, 2, 2), (1, 1, 1.5, 0.6))
        for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for mode, rounding in (
            ("nearest", "round_prefer_floor"),
            ("nearest", "floor"),
            ("nearest", "ceil"),
            ("linear", ""),
        )
    ),
    case("Resize", None, None, ints(2, 3, 9, 4), mode="linear"),
    case("Resize", None, None, ints(9, 4), axes=[2, 3], mode="nearest", opset=18),
    case("Resize", np.array([1, 1, 2, 2], dtype=np.float32), mode="nearest", opset=10),
    case("Resize", np.array([1, 1, 2, 2], dtype=np.float32), mode="linear", opset=10),
    case("Upsample", np.array([1, 1, 2, 3], dtype=np.float32), mode="nearest", opset=9),
    case("Upsample", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest", opset=8),
    case("Resize", None, np.array([1, 1, 2], dtype=np.float32), mode="linear", shape=(2, 3, 5)),
]
CASES = [*ACTIVATIONS, *ARITHMETIC, *CONVOLUTIONS, *PRODUCTS, *NORMS, *SEQUENCES, *POOLS, *SHAPES, *RESIZES]
POSITIVE = [case("Log"), case("Sqrt"), case("Pow", number(0.5)), case("Pow", random(3, 1, 1, seed=4))]


def _name(value: Any, otherwise: str) -> str:
    return "" if value is None else value if isinstance(value, str) else otherwise


def single(given: Case) -> Any:
    names = [_name(value, f"c{index}") for index, value in enumerate(given.others)]
    constants = {name: value for name, value in zip(names, given.others) if name not in ("", "x")}
    outputs = [f"y{index}" for index in range(given.outputs)]
    made = node(given.operator, ["x", *names], outputs, **given.attributes)
    return model([made], ("batch", *given.shape[1:]), constants, outputs, given.opset)


def assert_as_in_the_runtime(made: Any, x: Array, opset: int = OPSET) -> None:
    expected = run(made, x)
    module = OnnxModule(made.graph, opset).eval()
    answers = module(torch.from_numpy(x))
    answers = answers.values() if isinstance(answers, dict) else (answers,)
    for answer, value in zip(answers, expected, strict=True):
        assert answer.shape == value.shape
        np.testing.assert_allclose(answer.numpy(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", CASES, ids=str)
def test_operator(given: Case) -> None:
    assert_as_in_the_runtime(single(given), given.spread * random(*given.shape, seed=9), given.opset)


@pytest.mark.parametrize("given", POSITIVE, ids=str)
def test_operator_of_positive_values(given: Case) -> None:
    assert_as_in_the_runtime(single(given), np.abs(random(*given.shape, seed=9)) + 0.1)


class Together(nn.Module):
    """Many networks with an input each."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: list[torch.Tensor]) -> list[Any]:
        return [network(x) for network, x in zip(self.networks, inputs)]


def test_every_operator_can_be_captured_with_a_free_batch() -> None:
    # Sequences come before the batch; whole networks with them are in test_load.
    cases = [given for given in reversed([*CASES, *POSITIVE]) if given.operator not in ("LSTM", "GRU")]
    chosen = {given.operator: given for given in cases}.values()
    together = Together([OnnxModule(single(given).graph, given.opset) for given in chosen])
    several, more = ([torch.rand(count, *given.shape[1:]) for given in chosen] for count in (2, 3))
    free = [{0: Dim.DYNAMIC} for _ in chosen]
    program = torch.export.export(together, (several,), dynamic_shapes=(free,)).module()
    for given, answer, expected in zip(chosen, program(more), together(more), strict=True):
        torch.testing.assert_close(answer, expected, msg=str(given))


COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]


@pytest.mark.parametrize("operator", COMPARISONS)
def test_where_a_comparison_holds(operator: str) -> None:
    nodes = [
        node(operator, ["x", "limit"], ["holds"]),
        node("Not", ["holds"], ["fails"]),
        node("Where", ["fails", "x", "other"], ["y"]),
    ]
    x = np.round(random(2, 3, 4, 4))
    made = model(nodes, ("batch", 3, 4, 4), {"limit": number(1), "other": number(-7)})
    assert_as_in_the_runtime(made, x)


@pytest.mark.parametrize("bias", [1, 4])
@pytest.mark.parametrize("outputs", [1, 4])
def test_a_vector_beside_a_product(outputs: int, bias: int) -> None:
    """One that is longer than the product's rows makes them longer."""
    nodes = [node("MatMul", ["x", "weight"], ["product"]), node("Add", ["bias", "product"], ["y"])]
    made = model(nodes, ("batch", 7), {"weight": random(7, outputs), "bias": random(bias)})
    assert_as_in_the_runtime(made, random(2, 7))
    assert len(OnnxModule(made.graph, OPSET).steps) == (1 if bias == outputs else 2)


@pytest.mark.parametrize("operator", ["Min", "Max"])
@pytest.mark.parametrize("given", [["low", "high", "x"], ["low", "x", "many", "high"]], ids=",".join)
def test_numbers_before_a_tensor(operator: str, given: list[str]) -> None:
    made = model([node(operator, given)], ("batch", 7), {"low": number(-0.1), "high": number(0.2), "many": random(7)})
    assert_as_in_the_runtime(made, random(2, 7))


@pytest.mark.parametrize(
    ("sizes", "options"), [(ints(1, 2), {}), (np.array(2), {}), (None, {}), (None, {"keepdims": 0})]
)
def test_part_of_a_sequence(sizes: Array | None, options: dict[str, int]) -> None:
    named = [] if sizes is None else ["sizes"]
    nodes = [
        node("SplitToSequence", ["x", *named], ["parts"], axis=1, **options),
        node("SequenceAt", ["parts", "last"], ["y"]),
    ]
    constants = {"last": np.array(-1)} | ({} if sizes is None else {"sizes": sizes})
    assert_as_in_the_runtime(model(nodes, ("batch", 3, 4, 4), constants), random(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("operator", "others", "attributes", "says"),
    [
        ("GRU", (), {}, "linear_before_reset=1"),
        ("GRU", (), {"linear_before_reset": 1, "direction": "reverse"}, "read backwards only"),
        ("LSTM", (), {"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations Sigmoid, Relu, Tanh"),
        ("LSTM", (), {"layout": 1}, "layout=1"),
        ("LSTM", (), {"input_forget": 1}, "coupled gates"),
        ("LSTM", (None, np.array([6, 5], dtype=np.int32)), {}, "lengths of their own"),
        ("LSTM", (None, None, None, None, random(1, 12)), {}, "peepholes"),
        ("LSTM", (), {"clip": 1.0}, "the attribute clip"),
    ],
)
def test_sequences_that_torch_does_not_walk(
    operator: str, others: tuple[Any, ...], attributes: dict[str, Any], says: str
) -> None:
    gates = {"GRU": 12, "LSTM": 16}[operator]
    weights = random(1, gates, 5), random(1, gates, 4), *others
    made = single(Case(operator, (6, 2, 5), weights, {"hidden_size": 4, **attributes}))
    with pytest.raises(CaptureError, match=says):
        OnnxModule(made.graph, OPSET)(torch.zeros(6, 2, 5))


def test_every_known_operator_has_a_case() -> None:
    tried = {given.operator for given in [*CASES, *POSITIVE]} | {
        *COMPARISONS,
        "Not",
        "Where",
        "Shape",
        "SplitToSequence",
        "SequenceAt",
    }
    assert set(TENSOR_OPERATORS) - tried == set()


# Numbers: what a graph computes about shapes


def shaped(nodes: list[Any], constants: dict[str, Array]) -> Any:
    """A reshape to what `nodes` compute from the shape of x."""
    return model(
        [node("Shape", ["x"], ["shape"]), *nodes, node("Reshape", ["x", "to"], ["y"])], ("batch", 3, 4, 6), constants
    )


COMPUTED = {
    "gathered": (
        [
            node("Gather", ["shape", "zero"], ["batch"]),
            node("Unsqueeze", ["batch", "axis"], ["batch1"]),
            node("Concat", ["batch1", "rest"], ["to"], axis=0),
        ],
        {"zero": np.array(0), "axis": ints(0), "rest": ints(-1)},
    ),
    "sliced": (
        [
            node("Slice", ["shape", "one", "three", "zeros"], ["middle"]),
            node("ReduceProd", ["middle"], ["product"], keepdims=1),
            node("Concat", ["minus", "product", "six"], ["to"], axis=0),
        ],
        {"one": ints(1), "three": ints(3), "zeros": ints(0), "minus": ints(-1), "six": ints(6)},
    ),
    "arithmetic": (
        [
            node("Gather", ["shape", "three"], ["width"]),
            node("Mul", ["width", "four"], ["area"]),
            node("Div", ["area", "eight"], ["part"]),
            node("Add", ["part", "one"], ["more"]),
            node("Sub", ["more", "one"], ["last"]),
            node("Unsqueeze", ["last", "axis"], ["last1"]),
            node("Concat", ["zero", "minus", "last1"], ["to"], axis=0),
        ],
        {"three": np.array(3), "four": np.array(4), "eight": np.array(8), "one": np.array(1)}
        | {"axis": ints(0), "zero": ints(0), "minus": ints(-1)},
    ),
    "divided towards zero": (
        [
            node("Gather", ["shape", "three"], ["width"]),
            node("Sub", ["width", "thirteen"], ["below"]),
            node("Div", ["below", "two"], ["half"]),
            node("Neg", ["half"], ["last"]),
            node("Concat", ["zero", "minus", "last"], ["to"], axis=0),
        ],
        {"three": ints(3), "thirteen": ints(13), "two": ints(2), "zero": ints(0), "minus": ints(-1)},
    ),
    "fractions": (
        [
            node("Gather", ["shape", "two"], ["height"]),
            node("Cast", ["height"], ["fraction"], to=1),
            node("Mul", ["fraction", "factor"], ["scaled"]),
            node("Floor", ["scaled"], ["below"]),
            node("Ceil", ["below"], ["whole"]),
            node("Cast", ["whole"], ["size"], to=7),
            node("Reshape", ["size", "vector"], ["size1"]),
            node("Concat", ["zero", "minus", "size1"], ["to"], axis=0),
        ],
        {"two": np.array(2), "factor": number(1.6), "vector": ints(1), "zero": ints(0), "minus": ints(-1)},
    ),
    "chosen": (
        [
            node("Equal", ["wanted", "minus"], ["open"]),
            node("Where", ["open", "ones", "wanted"], ["positive"]),
            node("Neg", ["positive"], ["negative"]),
            node("Neg", ["negative"], ["again"]),
            node("Max", ["again", "ones"], ["most"]),
            node("Min", ["most", "many"], ["capped"]),
            node("Gather", ["shape", "one"], ["channels"], axis=0),
            node("Squeeze", ["channels"], ["scalar"]),
            node("Range", ["scalar", "end", "step"], ["counted"]),
            node("Expand", ["minus", "one"], ["front"]),
            node("Concat", ["front", "counted", "capped"], ["to"], axis=0),
        ],
        {"ones": ints(1, 1), "wanted": ints(-1, 9), "minus": ints(-1), "many": ints(2, 2), "one": ints(1)}
        | {"end": np.array(4), "step": np.array(1)},
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_shapes_that_the_graph_computes(name: str) -> None:
    nodes, constants = COMPUTED[name]
    assert_as_in_the_runtime(shaped(nodes, constants), random(2, 3, 4, 6))


@pytest.mark.parametrize(("operator", "opset"), [("Resize", OPSET), ("Resize", 10), ("Upsample", 9)])
def test_scales_that_the_graph_computes_from_sizes(operator: str, opset: int) -> None:
    """As exporters have written a resize to a size while ONNX took scales only."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "spatial"], ["old"]),
        node("Cast", ["old"], ["divisor"], to=1),
        node("Div", ["new", "divisor"], ["factors"]),
        node("Concat", ["ones", "factors"], ["scales"], axis=0),
        node(operator, ["x", *[""] * (opset == OPSET), "scales"], mode="linear"),
    ]
    constants = {"spatial": ints(2, 3), "new": np.array([9, 11], np.float32), "ones": np.ones(2, np.float32)}
    made = model(nodes, ("batch", 3, 4, 6), constants, opset=opset)
    assert_as_in_the_runtime(made, random(2, 3, 4, 6), opset)


def test_a_batch_that_is_divided_stays_free() -> None:
    nodes = [
        node("Slice", ["shape", "zero", "one"], ["batch"]),
        node("Mul", ["batch", "two"], ["twice"]),
        node("Sub", ["twice", "six"], ["less"]),
        node("Div", ["less", "two"], ["half"]),
        node("Add", ["half", "three"], ["again"]),
        node("Concat", ["again", "minus"], ["to"], axis=0),
    ]
    made = shaped(
        nodes,
        {name: ints(at) for at, name in enumerate(("zero", "one", "two", "three"))}
        | {"six": ints(6), "minus": ints(-1)},
    )
    free = ({0: Dim.DYNAMIC},)
    program = torch.export.export(
        OnnxModule(made.graph, OPSET), (torch.rand(2, 3, 4, 6),), dynamic_shapes=free
    ).module()
    x = random(6, 3, 4, 6)
    np.testing.assert_array_equal(program(torch.from_numpy(x)), run(made, x)[0])


def test_constants_of_a_computed_shape() -> None:
    nodes = [
        node("Shape", ["weight"], ["shape"], start=0, end=1),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("Identity", ["zeros"], ["bias"]),
        node("Conv", ["x", "weight", "bias"], ["y"]),
    ]
    made = model(nodes, ("batch", 3, 4, 6), {"weight": random(5, 3, 1, 1)})
    assert_as_in_the_runtime(made, random(2, 3, 4, 6))


WHOLE = np.array([-7, 7, -8, 8, -1], dtype=np.int32)


@pytest.mark.parametrize("below", [np.array(2), np.array(-2), ints(2, -2, 3, -3, 2)], ids=str)
@pytest.mark.parametrize("above", [np.array(-7), WHOLE, "data"], ids=["number", "constants", "data"])
def test_whole_numbers_are_divided_towards_zero(above: Array | str, below: Array) -> None:
    nodes = [
        node("Cast", ["x"], ["data"], to=6),
        node("Div", ["data" if isinstance(above, str) else "above", "below"], ["share"]),
        node("Cast", ["share"], ["fraction"], to=1),
        node("Add", ["x", "fraction"], ["y"]),
    ]
    constants = {"above": WHOLE if isinstance(above, str) else above.astype(np.int32), "below": below.astype(np.int32)}
    assert_as_in_the_runtime(model(nodes, ("batch", 5), constants), np.array([WHOLE] * 2, dtype=np.float32))


@pytest.mark.parametrize(
    "made_large",
    [
        node("ConstantOfShape", ["size"], ["numbers"]),
        node("Expand", ["one", "size"], ["numbers"]),
        node("Range", ["none", "end", "one"], ["numbers"]),
    ],
    ids=lambda made: made.op_type,
)
def test_a_large_constant_is_refused_before_it_is_made(made_large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dffg.onnx_import.numbers._MOST_ELEMENTS", 8)
    given = {"size": ints(9), "one": number(1), "none": number(0), "end": number(9)}
    made = model([made_large, node("Add", ["x", "numbers"], ["y"])], ("batch", 3, 4, 9), given)
    with pytest.raises(CaptureError, match=rf"in {made_large.op_type} .*: a constant of shape \[9\] is too large"):
        OnnxModule(made.graph, OPSET)(torch.zeros(1, 3, 4, 9))
    monkeypatch.setattr("dffg.onnx_import.numbers._MOST_ELEMENTS", 9)
    OnnxModule(made.graph, OPSET)(torch.zeros(1, 3, 4, 9))


def test_every_operator_on_numbers_has_a_case() -> None:
    tried = {made.op_type for nodes, _ in COMPUTED.values() for made in nodes}
    assert set(NUMBER_OPERATORS) - tried == {"Shape", "Reshape", "ConstantOfShape", "Identity"} - tried


# What is refused


REFUSED = [
    (case("Resize", None, number(1) * np.ones(4, np.float32) * 2, mode="nearest"), "batch and channels"),
    (case("Resize", None, np.array([1, 1, 2, 2], dtype=np.float32), mode="cubic"), "cubic interpolation"),
    (case("Resize", None, np.array([1, 1, 2, 2], dtype=np.float32), mode="linear", antialias=1), "antialias"),
    (case("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
    (case("Cast", to=10), "a cast to float16"),
    (case("Pad", ints(1, 0, 0, 0, 1, 0, 0, 0), mode="edge"), "edge padding of the batch"),
    (case("Pad", ints(0, 1, *[0] * 8), mode="wrap", shape=(2, 3, 4, 5, 6)), "wrap padding .* of more than three axes"),
]


@pytest.mark.parametrize(("given", "reason"), REFUSED, ids=str)
def test_what_is_not_supported_is_named_with_its_node(given: Case, reason: str) -> None:
    module = OnnxModule(single(given).graph, given.opset)
    with pytest.raises(CaptureError, match=rf"in {given.operator} {given.operator}_0: .*{reason}.* Export"):
        module(torch.zeros(given.shape))


def test_unknown_operator_is_named_with_its_node() -> None:
    made = model([node("Relu", ["x"], ["r"]), node("Det", ["r"], ["y"], name="head/area")], ("batch", 3, 4, 4))
    with pytest.raises(CaptureError, match=r"the operator Det \(node head.area\) is not known to dffg. Export"):
        OnnxModule(made.graph, OPSET)


def test_unknown_attribute_is_named() -> None:
    made = single(case("Relu"))
    made.graph.node[0].attribute.append(helper.make_attribute("surprise", 1))
    with pytest.raises(CaptureError, match="the attribute surprise of Relu Relu_0 is not supported"):
        OnnxModule(made.graph, OPSET)


def test_size_that_the_data_decides_is_refused() -> None:
    nodes = [
        node("ReduceMax", ["x"], ["most"]),
        node("Cast", ["most"], ["whole"], to=7),
        node("Reshape", ["whole", "vector"], ["size"]),
        node("Expand", ["x", "size"], ["y"]),
    ]
    made = model(nodes, ("batch", 3, 4, 4), {"vector": ints(1)})
    with pytest.raises(CaptureError, match="in Expand Expand_3: a size or an axis depends on the data"):
        OnnxModule(made.graph, OPSET)(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("opset", [OPSET, 10])
def test_a_scale_that_the_data_decides_is_refused(opset: int) -> None:
    made = model([node("Resize", ["x", *[""] * (opset == OPSET), "x"])], ("batch", 3, 4, 4), opset=opset)
    with pytest.raises(CaptureError, match="in Resize Resize_0: a scale depends on the data"):
        OnnxModule(made.graph, opset)(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("nodes", [[], [node("Neg", ["stored"], ["fixed"])], [node("Identity", ["stored"], ["fixed"])]])
def test_an_output_that_depends_on_no_input_is_refused(nodes: list[Any]) -> None:
    name = "fixed" if nodes else "stored"
    made = model([node("Relu", ["x"]), *nodes], ("batch", 7), {"stored": random(7)}, ["y", name])
    with pytest.raises(CaptureError, match=f"the output {name} depends on no input; leave it out"):
        OnnxModule(made.graph, OPSET)(torch.zeros(2, 7))


def test_no_older_version_is_needed_than_the_oldest() -> None:
    assert min(given.opset for given in CASES) >= OLDEST_VERSION
