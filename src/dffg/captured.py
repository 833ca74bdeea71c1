"""Turn a network, however it is given, into one graph with a dynamic batch: `capture(model, ...) -> Captured`."""

from __future__ import annotations

import copy
import inspect
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

from dffg.device import HOST, device_of, moved
from dffg.ends import columns, examples, inputs_of, join, join_inputs, join_outputs, split
from dffg.errors import CaptureError, DffgError, InputError, StatisticsError, first_line
from dffg.graph import BATCH_NORM, aten, calls, fold_constants, is_stored, layer_name, optional_tensor, stored_tensor
from dffg.images import ImageSpec, JointSpec
from dffg.patches import describe, patch_sources

_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default)
_IDENTITIES = (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)
_NAMED_PADDINGS: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
_RELATIVE_TOLERANCE = 1e-4
_FLOAT_ONLY = (
    "Inputs are float32; give a network that begins behind what takes integers, such as the result of an embedding."
)
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
    """One graph in eval mode: an input placeholder, ATen calls without side effects, one output tensor.

    Of a network with several inputs or outputs these are laid end to end, see `ends.py`.
    """

    module: fx.GraphModule
    batch_norms: tuple[BatchNorm, ...]
    spec: ImageSpec
    name: str
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where it computes; what it is given must lie there."""
        return device_of(self.module)

    def on(self, device: torch.device) -> Captured:
        """The same network on a device."""
        module = moved(self.module, device)
        return replace(self, module=module, batch_norms=find_batch_norms(module))

    @property
    def zero_variance_channels(self) -> int:
        """Channels whose stored variance is 0. They are normal in trained networks and are matched through eps."""
        return sum(int((norm.running_var == 0).sum()) for norm in self.batch_norms)


def capture(
    model: nn.Module | ExportedProgram,
    example_input: Tensor | Sequence[Tensor] | None = None,
    *,
    spec: ImageSpec | None = None,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    name: str | None = None,
) -> Captured:
    """Capture a network as one `torch.export` graph; the caller's model is not touched.

    Give `spec` (shape, mean, std and bounds of the input), or only `input_shape` or an `example_input` with its batch
    dimension, in which case pixels in [0, 1] without normalisation are assumed and a note says so. Several inputs are
    several shapes or examples, or a `JointSpec`, in the order of the arguments of `forward`.

    Raises `CaptureError` where weights are NaN or infinite, or the network cannot be exported, with the exporter's
    reason, and `StatisticsError` where it has neither BatchNorm nor patches to compare, or a BatchNorm whose statistics
    are missing, negative, infinite or NaN.
    """
    example_inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input or ())
    shapes = [tuple(example.shape[1:]) for example in example_inputs]
    if input_shape is not None:
        shapes = [tuple(input_shape)] if isinstance(input_shape[0], int) else list(map(tuple, input_shape))  # type: ignore
    if isinstance(model, ExportedProgram) and not shapes:
        shapes = program_input_shapes(model)
    spec, notes = _complete_spec(spec, shapes)
    program, more_notes = _export(model, example_inputs, spec)
    module = _functional_module(program, getattr(model, "input_names", ()))
    batch_norms = find_batch_norms(module)
    _check_weights(module)
    _check_same_answer(program, module, spec)
    if not batch_norms:
        more_notes = (*more_notes, _without_batch_norm(module))
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
        torch.export.save(
            torch.export.export(captured.on(HOST).module, (example,), dynamic_shapes=_DYNAMIC_BATCH), archive
        )
    return archive.getvalue()


def from_bytes(archive: bytes, spec: ImageSpec) -> Captured:
    """The network again: other objects that compute the same. Several inputs and outputs stay laid end to end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = capture(torch.export.load(io.BytesIO(archive)), spec=ImageSpec(shape=spec.shape))
    return replace(captured, spec=spec)


def _without_batch_norm(module: fx.GraphModule) -> str:
    """What is used in its place, as a note. Raises StatisticsError where there is nothing."""
    _refuse_decomposed(module)
    sources = patch_sources(module)
    if not sources:
        raise StatisticsError(
            "the network has no BatchNorm, so nothing of its training data can be recovered, and neither attention nor "
            "another normalization of maps, whose patches could be compared. If BatchNorm was folded into the "
            "convolutions, start from the unfolded network; otherwise calibrate with real data."
        )
    return describe(sources)


def _refuse_decomposed(module: fx.GraphModule) -> None:
    if any("_native_batch_norm" in str(node.target) for node in module.graph.nodes):
        raise CaptureError(
            "the program was decomposed (run_decompositions) before it was saved; save what torch.export.export gives."
        )


def find_batch_norms(module: fx.GraphModule) -> tuple[BatchNorm, ...]:
    """Every BatchNorm call of the graph in execution order; a module used twice is found twice."""
    return tuple(_read_batch_norm(module, node) for node in module.graph.nodes if calls(node, BATCH_NORM))


def _complete_spec(spec: ImageSpec | None, shapes: Sequence[tuple[int, ...]]) -> tuple[ImageSpec, tuple[str, ...]]:
    if spec is not None:
        return spec, ()
    if not shapes:
        raise InputError("the input is unknown; give spec=, input_shape= or an example input.")
    note = "no mean, std or bounds were given: assuming pixels in [0, 1] without normalisation"
    return default_spec(shapes), (note,)


def default_spec(shapes: Sequence[tuple[int, ...]]) -> ImageSpec:
    """Pixels in [0, 1] without normalisation, of every input."""
    specs = [ImageSpec(shape=shape, source="default") for shape in shapes]
    return specs[0] if len(specs) == 1 else JointSpec.of(specs)


def _export(
    model: nn.Module | ExportedProgram, example_inputs: tuple[Tensor, ...], spec: ImageSpec
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
    given = _examples(quiet, example_inputs, spec)
    _try_forward(quiet, given, spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(quiet, given, dynamic_shapes=_dynamic_batches(quiet, len(given))), notes
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture this network: {first_line(error)}\nUsual causes are Python control flow on "
            "tensor values, calls to .item() or numpy inside forward, and shapes that fix the batch size; change those "
            "lines, or export it yourself with torch.export and give the .pt2 file."
        ) from error


def _dynamic_batches(model: nn.Module, count: int) -> tuple[Any, ...]:
    """A dynamic batch of every input, nested as in the arguments of `forward`, which may have `*more`."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else count
    if count <= named:
        return _DYNAMIC_BATCH * count
    return (*_DYNAMIC_BATCH * named, _DYNAMIC_BATCH * (count - named))


def _examples(model: nn.Module, example_inputs: tuple[Tensor, ...], spec: ImageSpec) -> tuple[Tensor, ...]:
    """Two examples: a batch of one would be taken for a constant by torch.export."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    if dtype != torch.float32:
        raise CaptureError(f"the network's weights are {dtype}; convert it with model.float() first.")
    if not example_inputs:
        return examples(spec, 2)
    for example, part in zip(example_inputs, inputs_of(spec)):
        if tuple(example.shape[1:]) != part.shape:
            raise InputError(f"the example input has shape {tuple(example.shape)}, not a batch of {part.shape}.")
    return tuple(
        example.detach().float().expand(2, *example.shape[1:]) if len(example) == 1 else example[:2]
        for example in example_inputs
    )


def _try_forward(model: nn.Module, given: tuple[Tensor, ...], spec: ImageSpec) -> None:
    """Run the network once as it is, so that a wrong shape is told apart from a graph that cannot be captured."""
    shape = "/".join("x".join(map(str, part.shape)) for part in inputs_of(spec))
    try:
        with torch.no_grad():
            model(*given)
    except TypeError as error:
        count = "one tensor" if len(given) == 1 else f"{len(given)} tensors"
        raise CaptureError(
            f"the network does not take {count} ({error}). Several inputs are described with a slash between them, in "
            "the order of the arguments of forward, like --input 3x224x224/8."
        ) from error
    except DffgError:
        raise
    except Exception as error:
        hint = _FLOAT_ONLY if "indices" in str(error) else "Give the right one with --input CxHxW."
        raise InputError(f"the network fails on an input of shape {shape}: {first_line(error)}\n{hint}") from error


def _require_shape(program: ExportedProgram, spec: ImageSpec) -> None:
    expected, given = program_input_shapes(program), [part.shape for part in inputs_of(spec)]
    if expected != given:
        found, wanted = ("/".join("x".join(map(str, shape)) for shape in shapes) for shapes in (expected, given))
        raise InputError(f"the exported program takes inputs of shape {found}, not {wanted}; leave --input out.")


def program_input_shapes(program: ExportedProgram) -> list[tuple[int, ...]]:
    """Shape of one example of every input, read from an exported program, whose batch must not be fixed."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    if not values or not all(isinstance(value, Tensor) and value.dim() for value in values):
        raise CaptureError("the program takes something that is no batch of tensors; export one that takes only those.")
    for name, value in zip(names, values):
        if not value.is_floating_point():
            raise CaptureError(f"the program's input {name} is {value.dtype}. {_FLOAT_ONLY}")
        if isinstance(value.shape[0], int):
            raise CaptureError(
                f"the program was exported with a fixed batch of {value.shape[0]}; export it with "
                f"dynamic_shapes=({'{0: torch.export.Dim.DYNAMIC}, ' * len(values)}).".replace(", ).", ",).")
            )
    return [tuple(int(size) for size in value.shape[1:]) for value in values]


def _functional_module(program: ExportedProgram, input_names: Sequence[str] = ()) -> fx.GraphModule:
    """A plain graph: one input, one output tensor, no in-place calls, nothing that does nothing in eval mode."""
    source = program.module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(source.graph, copies)
    graph.output(_one_output(graph, outputs, program.call_spec.out_spec))
    for node in list(graph.nodes):
        _make_functional(graph, node)
    _join_inputs(graph, input_names)
    graph.eliminate_dead_code()
    module = fx.GraphModule(source, graph)
    fold_constants(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _one_output(graph: fx.Graph, outputs: Any, structure: Any) -> fx.Node:
    """The output, or several of them joined, each with the path that leads to it in what the network returns."""
    leaves = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    paths, _ = tree_flatten_with_path(tree_unflatten(range(len(leaves)), structure))
    found = {_path_name(path): leaf for (path, _), leaf in zip(paths, leaves, strict=True) if leaf is not None}
    for name, leaf in found.items():
        value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
        if not isinstance(value, Tensor):
            raise CaptureError(f"output {name} of the network is no tensor; return tensors only.")
        if len(found) > 1 and (value.dim() == 0 or isinstance(value.shape[0], int)):
            raise CaptureError(f"output {name} of the network has no batch; return what depends on the input only.")
    if not found:
        raise CaptureError("the network returns no tensor.")
    return next(iter(found.values())) if len(found) == 1 else join_outputs(graph, list(found.values()), list(found))


def _path_name(path: Any) -> str:
    """`[0]['out'].boxes` as 0.out.boxes."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path)


def _join_inputs(graph: fx.Graph, names: Sequence[str]) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) < 2:
        return
    names = names or [node.name for node in inputs]
    unused = [name for name, node in zip(names, inputs, strict=True) if not node.users]
    if unused:
        raise CaptureError(f"the network does not use its input {unused[0]}; leave it out.")
    join_inputs(graph, [re.sub(r"\W", "_", name) for name in names])


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
    given = split(sample.numpy(), [part.shape for part in inputs_of(spec)])
    with torch.no_grad():
        returned = program.module(check_guards=False)(*map(torch.from_numpy, given))
        answer = module(sample)
    leaves = [leaf for leaf in tree_leaves(returned) if leaf is not None]
    expected = leaves[0] if len(leaves) == 1 else torch.from_numpy(join([leaf.numpy() for leaf in leaves]))
    if not torch.isfinite(expected).all():
        raise CaptureError("the network returns NaN or infinite values on a random input; check its weights.")
    parts = columns(module).values()
    for found, wanted in [(answer[:, part], expected[:, part]) for part in parts] or [(answer, expected)]:
        if (found - wanted).abs().max() > _RELATIVE_TOLERANCE * wanted.abs().max().clamp(min=1e-6):
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
