"""Turn a network, however it is given, into one graph with a dynamic batch: `capture(model, ...) -> Captured`."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from dffg.errors import CaptureError, DffgError, InputError, StatisticsError, first_line
from dffg.graph import BATCH_NORM, aten, calls, fold_constants, is_stored, layer_name, optional_tensor, stored_tensor
from dffg.images import ImageSpec

_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default)
_IDENTITIES = (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)
_NAMED_PADDINGS: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
_RELATIVE_TOLERANCE = 1e-4
_DYNAMIC_BATCH = ({0: Dim.DYNAMIC},)


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """One BatchNorm call: what it remembers of its input, and its affine part. All tensors have shape (channels,)."""

    name: str
    node: fx.Node
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def input(self) -> fx.Node:
        """The node whose statistics it remembers."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


@dataclass(frozen=True, kw_only=True)
class Captured:
    """One graph in eval mode: an input placeholder, ATen calls without side effects, one output tensor."""

    module: fx.GraphModule
    batch_norms: tuple[BatchNorm, ...]
    spec: ImageSpec
    name: str
    notes: tuple[str, ...] = ()

    @property
    def zero_variance_channels(self) -> int:
        """Channels whose stored variance is 0. They are normal in trained networks and are matched through eps."""
        return sum(int((norm.running_var == 0).sum()) for norm in self.batch_norms)


def capture(
    model: nn.Module | ExportedProgram,
    example_input: Tensor | None = None,
    *,
    spec: ImageSpec | None = None,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
) -> Captured:
    """Capture a network as one `torch.export` graph; the caller's model is not touched.

    Give `spec` (shape, mean, std and bounds of the input), or only `input_shape` or an `example_input` with its batch
    dimension, in which case pixels in [0, 1] without normalisation are assumed and a note says so.

    Raises `CaptureError` where weights are NaN or infinite, or the network cannot be exported, with the exporter's
    reason, and `StatisticsError` where it has no BatchNorm, or one whose statistics are missing, negative, infinite or
    NaN.
    """
    if isinstance(model, ExportedProgram) and input_shape is None:
        input_shape = program_input_shape(model)
    spec, notes = _complete_spec(spec, input_shape, example_input)
    program, more_notes = _export(model, example_input, spec)
    module = _functional_module(program)
    batch_norms = find_batch_norms(module)
    _check_weights(module)
    _check_same_answer(program, module, spec)
    if not batch_norms:
        _refuse_decomposed(module)
        raise StatisticsError(
            "the network has no BatchNorm, so nothing of its training data can be recovered. If BatchNorm was folded "
            "into the convolutions, start from the unfolded network; otherwise calibrate with real data."
        )
    return Captured(
        module=module,
        batch_norms=batch_norms,
        spec=spec,
        name=name or type(model).__name__,
        notes=(*notes, *more_notes),
    )


def to_bytes(captured: Captured) -> bytes:
    """The network as torch.export's archive of plain data, for `from_bytes` in another process."""
    archive = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros(2, *captured.spec.shape)
        torch.export.save(torch.export.export(captured.module, (example,), dynamic_shapes=_DYNAMIC_BATCH), archive)
    return archive.getvalue()


def from_bytes(archive: bytes, spec: ImageSpec) -> Captured:
    """The network again: other objects that compute the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(torch.export.load(io.BytesIO(archive)), spec=spec)


def _refuse_decomposed(module: fx.GraphModule) -> None:
    if any("_native_batch_norm" in str(node.target) for node in module.graph.nodes):
        raise CaptureError(
            "the program was decomposed (run_decompositions) before it was saved; save what torch.export.export gives."
        )


def find_batch_norms(module: fx.GraphModule) -> tuple[BatchNorm, ...]:
    """Every BatchNorm call of the graph in execution order; a module used twice is found twice."""
    return tuple(_read_batch_norm(module, node) for node in module.graph.nodes if calls(node, BATCH_NORM))


def _complete_spec(
    spec: ImageSpec | None, input_shape: Sequence[int] | None, example_input: Tensor | None
) -> tuple[ImageSpec, tuple[str, ...]]:
    if spec is not None:
        return spec, ()
    if input_shape is None and example_input is None:
        raise InputError("the input is unknown; give spec=, input_shape= or an example input.")
    shape = tuple(input_shape) if input_shape is not None else tuple(example_input.shape[1:])  # type: ignore[union-attr]
    note = "no mean, std or bounds were given: assuming pixels in [0, 1] without normalisation"
    return ImageSpec(shape=shape, source="default"), (note,)


def _export(
    model: nn.Module | ExportedProgram, example_input: Tensor | None, spec: ImageSpec
) -> tuple[ExportedProgram, tuple[str, ...]]:
    if isinstance(model, ExportedProgram):
        _require_shape(model, spec)
        return model, ()
    notes = ("the model was in train mode: captured in eval mode",) if model.training else ()
    try:
        quiet = copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied, which capture needs to leave yours untouched: {error}"
        ) from error
    example = _example(quiet, example_input, spec)
    _try_forward(quiet, example, spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(quiet, (example,), dynamic_shapes=_DYNAMIC_BATCH), notes
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture this network: {first_line(error)}\nUsual causes are Python control flow on "
            "tensor values, calls to .item() or numpy inside forward, and shapes that fix the batch size; change those "
            "lines, or export it yourself with torch.export and give the .pt2 file."
        ) from error


def _example(model: nn.Module, example_input: Tensor | None, spec: ImageSpec) -> Tensor:
    """Two examples: a batch of one would be taken for a constant by torch.export."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    if dtype != torch.float32:
        raise CaptureError(f"the network's weights are {dtype}; convert it with model.float() first.")
    if example_input is None:
        return torch.zeros(2, *spec.shape)
    if tuple(example_input.shape[1:]) != spec.shape:
        raise InputError(f"the example input has shape {tuple(example_input.shape)}, not a batch of {spec.shape}.")
    return example_input.detach().float().expand(2, *spec.shape) if len(example_input) == 1 else example_input[:2]


def _try_forward(model: nn.Module, example: Tensor, spec: ImageSpec) -> None:
    """Run the network once as it is, so that a wrong shape is told apart from a graph that cannot be captured."""
    try:
        with torch.no_grad():
            model(example)
    except TypeError as error:
        raise CaptureError(
            f"the network does not take one tensor ({error}); several inputs are not supported yet."
        ) from error
    except DffgError:
        raise
    except Exception as error:
        shape = "x".join(map(str, spec.shape))
        raise InputError(
            f"the network fails on an input of shape {shape}: {first_line(error)}\n"
            "Give the right one with --input CxHxW."
        ) from error


def _require_shape(program: ExportedProgram, spec: ImageSpec) -> None:
    expected = program_input_shape(program)
    if expected != spec.shape:
        shapes = ["x".join(map(str, shape)) for shape in (expected, spec.shape)]
        raise InputError(f"the exported program takes inputs of shape {shapes[0]}, not {shapes[1]}; leave --input out.")


def _dynamic_input(program: ExportedProgram) -> fx.Node:
    """The one input of a program, whose batch must not be fixed."""
    names = program.graph_signature.user_inputs
    inputs: list[fx.Node] = [node for node in program.graph.nodes if node.name in names]
    if len(inputs) != 1:
        raise CaptureError(f"the program has {len(inputs)} inputs; only one is supported yet.")
    if isinstance(inputs[0].meta["val"].shape[0], int):
        raise CaptureError(
            f"the program was exported with a fixed batch of {inputs[0].meta['val'].shape[0]}; export it with "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)."
        )
    return inputs[0]


def program_input_shape(program: ExportedProgram) -> tuple[int, ...]:
    """Shape of one example, read from an exported program."""
    return tuple(int(size) for size in _dynamic_input(program).meta["val"].shape[1:])


def _functional_module(program: ExportedProgram) -> fx.GraphModule:
    """A plain graph: one output tensor, no in-place calls, nothing that does nothing in eval mode."""
    source = program.module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(source.graph, copies)
    while isinstance(outputs, (tuple, list)) and len(outputs) == 1:
        outputs = outputs[0]
    if not isinstance(outputs, fx.Node):
        raise CaptureError("the network does not return one tensor; several outputs are not supported yet.")
    graph.output(outputs)
    for node in list(graph.nodes):
        _make_functional(graph, node)
    graph.eliminate_dead_code()
    module = fx.GraphModule(source, graph)
    fold_constants(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _make_functional(graph: fx.Graph, node: fx.Node) -> None:
    if node.op != "call_function":
        return
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        node.target = _out_of_place(node.target)
    if calls(node, *_NAMED_PADDINGS):
        _write_padding_out(graph, node)
    if calls(node, aten.view.default):
        # Without the copies that are left out below, the memory may lie otherwise.
        node.target = aten.reshape.default
    if calls(node, *_DROPOUTS, *_IDENTITIES):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)


def _write_padding_out(graph: fx.Graph, node: fx.Node) -> None:
    """`padding="same"` as numbers, so that later passes know one form of a convolution.

    Where an odd total cannot be halved, the larger half comes last, in a padding of its own.
    """
    defaults = (None, None, None, [1], "valid", [1], 1)
    arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
    source, weight, bias, strides, padding, dilations, groups = arguments
    kernel = weight.meta["val"].shape[2:]
    strides, dilations = (list(values) * (len(kernel) // len(values)) for values in (strides, dilations))
    totals = [d * (size - 1) if padding == "same" else 0 for d, size in zip(dilations, kernel)]
    if any(total % 2 for total in totals):
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        with graph.inserting_before(node):
            padded = graph.call_function(aten.pad.default, (source, sides))
        padded.meta["val"] = torch.nn.functional.pad(source.meta["val"], sides)
        source, totals = padded, [0] * len(totals)
    node.args = (source, weight, bias, strides, [total // 2 for total in totals], dilations, groups)
    node.target = _NAMED_PADDINGS[node.target]


def _out_of_place(operator: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """`aten.relu_.default` -> `aten.relu.default`. Later readers already name the result of the in-place call."""
    packet = getattr(aten, operator._schema.name.partition("::")[2].removesuffix("_"), None)
    twin = getattr(packet, operator._overloadname, None)
    if twin is None or twin is operator:
        raise CaptureError(f"the network changes a tensor in place ({operator}); write it without the in-place call.")
    return twin  # type: ignore[no-any-return]


def _check_weights(module: fx.GraphModule) -> None:
    """A clip would hide an infinite weight from every look at the answer."""
    damaged = [name for name, weight in module.named_parameters() if not torch.isfinite(weight).all()]
    if damaged:
        raise CaptureError(f"{damaged[0]} holds NaN or infinite values; the weights are damaged.")


def _check_same_answer(program: ExportedProgram, module: fx.GraphModule, spec: ImageSpec) -> None:
    """In-place calls on views would be lost by the rewriting above; this is where it would show."""
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.from_numpy(bound) for bound in spec.input_bounds())
    sample = low + (high - low) * torch.rand(2, *spec.shape, generator=generator)
    with torch.no_grad():
        expected, answer = program.module(check_guards=False)(sample), module(sample)
    expected = expected[0] if isinstance(expected, (tuple, list)) else expected
    if not torch.isfinite(expected).all():
        raise CaptureError("the network returns NaN or infinite values on a random input; check its weights.")
    if (answer - expected).abs().max() > _RELATIVE_TOLERANCE * expected.abs().max().clamp(min=1e-6):
        raise CaptureError("the network writes into parts of a tensor in place; write it without in-place calls.")


def _read_batch_norm(module: fx.GraphModule, node: fx.Node) -> BatchNorm:
    _, weight, bias, mean, var, training, _, eps, *_ = node.args
    name = str(mean.target).rpartition(".")[0] if is_stored(mean) else layer_name(node)  # type: ignore[union-attr]
    if training and mean is not None:
        raise StatisticsError(
            f"BatchNorm {name} is in train mode; call model.eval() before torch.export, or give the model itself."
        )
    if mean is None or var is None:
        raise StatisticsError(
            f"BatchNorm {name} has no running statistics (track_running_stats=False), so it remembers nothing of the "
            "training data. Use a network trained with running statistics, or calibrate with real data."
        )
    if not (is_stored(mean) and is_stored(var)):
        raise StatisticsError(
            f"BatchNorm {name} computes its statistics instead of storing them; this is not supported."
        )
    norm = BatchNorm(
        name=name or node.name,
        node=node,
        running_mean=stored_tensor(module, mean),  # type: ignore[arg-type]
        running_var=stored_tensor(module, var),  # type: ignore[arg-type]
        weight=optional_tensor(module, weight),  # type: ignore[arg-type]
        bias=optional_tensor(module, bias),  # type: ignore[arg-type]
        eps=float(eps),  # type: ignore[arg-type]
    )
    _check_statistics(norm)
    return norm


def _check_statistics(norm: BatchNorm) -> None:
    bad = ~torch.isfinite(norm.running_mean) | ~torch.isfinite(norm.running_var) | (norm.running_var < 0)
    if bad.any():
        channels = bad.nonzero().flatten()[:5].tolist()
        raise StatisticsError(
            f"BatchNorm {norm.name} has NaN, infinite or negative statistics in {int(bad.sum())} of {len(bad)} "
            f"channels (first: {channels}); the weights are damaged or were not loaded."
        )
