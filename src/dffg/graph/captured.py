"""Turn a network, however it is given, into one graph with a dynamic batch: `capture(model, ...) -> Captured`."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from dffg.bounds import input_bounds
from dffg.errors import CaptureError, DffgError, InputError, StatisticsError, first_line
from dffg.graph.batch_norms import BatchNorm, find_batch_norms, thaw_
from dffg.graph.ends import columns, examples, join, split
from dffg.graph.functional import functional_module
from dffg.graph.names import with_usable_paths
from dffg.graph.nodes import moved, refuse_endless
from dffg.graph.patches import describe, patch_sources
from dffg.machine.device import HOST, device_of
from dffg.spec import DEFAULT_INPUT, ImageSpec, JointSpec, shape_text

_RELATIVE_TOLERANCE = 1e-4
_FLOAT_ONLY = (
    "Inputs are float32; give a network that begins behind what takes integers, such as the result of an embedding."
)
_DYNAMIC_BATCH = ({0: Dim.DYNAMIC},)


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
        """Of all BatchNorm calls."""
        return sum(norm.zero_variance_channels for norm in self.batch_norms)


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
    dimension, in which case pixels in [0, 1] without normalization are assumed and a note says so. Several inputs are
    several shapes or examples, or a `JointSpec`, in the order of the arguments of `forward`.

    Raises `InputError` where the input is unknown or wrong, `CaptureError` where weights are NaN or infinite, the only
    output holds no floating-point numbers, or the network cannot be exported, with the exporter's reason, and
    `StatisticsError` where it has neither BatchNorm nor patches to compare, or a BatchNorm whose statistics are
    missing, negative, infinite or NaN.
    """
    if spec is not None and input_shape is not None:
        raise InputError("spec and input_shape are both given; leave input_shape out, since spec has a shape.")
    example_inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input or ())
    shapes = [tuple(example.shape[1:]) for example in example_inputs]
    if input_shape is not None:
        is_one = not input_shape or isinstance(input_shape[0], int)
        shapes = [tuple(input_shape)] if is_one else list(map(tuple, input_shape))  # type: ignore
    if isinstance(model, ExportedProgram) and not shapes:
        shapes = program_input_shapes(model)
    spec, notes = _complete_spec(spec, shapes)
    program, more_notes = _export(model, example_inputs, spec)
    refuse_endless(len(program.graph.nodes))
    program = with_usable_paths(program)
    module = functional_module(program, getattr(model, "input_names", ()))
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
            "convolutions, start from the unfolded network. Real data (--calibration) does not help: the file is "
            "verified on images that are made from the network, too."
        )
    return describe(sources)


def _refuse_decomposed(module: fx.GraphModule) -> None:
    if any("_native_batch_norm" in str(node.target) for node in module.graph.nodes):
        raise CaptureError(
            "the program was decomposed (run_decompositions) before it was saved; save what torch.export.export gives."
        )


def _complete_spec(spec: ImageSpec | None, shapes: Sequence[tuple[int, ...]]) -> tuple[ImageSpec, tuple[str, ...]]:
    if spec is not None:
        return spec, ()
    if not shapes:
        raise InputError("the input is unknown; give spec=, input_shape= or an example input.")
    return default_spec(shapes), (f"no mean, std or bounds were given: assuming {DEFAULT_INPUT}",)


def default_spec(shapes: Sequence[tuple[int, ...]]) -> ImageSpec:
    """Pixels in [0, 1] without normalization, of every input."""
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
    thaw_(quiet)
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
    for example, part in zip(example_inputs, spec.parts):
        if tuple(example.shape[1:]) != part.shape:
            raise InputError(f"the example input has shape {tuple(example.shape)}, not a batch of {part.shape}.")
    return tuple(
        example.detach().float().expand(2, *example.shape[1:]) if len(example) == 1 else example[:2]
        for example in example_inputs
    )


def _try_forward(model: nn.Module, given: tuple[Tensor, ...], spec: ImageSpec) -> None:
    """Run the network once as it is, so that a wrong shape is told apart from a graph that cannot be captured."""
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
    except SystemExit as ended:
        raise InputError(f"the network ends the program (sys.exit({ended.code!r})) in its forward.") from ended
    except Exception as error:
        hint = _FLOAT_ONLY if "indices" in str(error) else "If the shape is wrong, give another with --input CxHxW."
        raise InputError(
            f"the network fails on an input of shape {spec.written_shape}: {first_line(error)}\n{hint}"
        ) from error


def _require_shape(program: ExportedProgram, spec: ImageSpec) -> None:
    expected, given = program_input_shapes(program), [part.shape for part in spec.parts]
    if expected != given:
        found = shape_text(expected)
        raise InputError(
            f"the exported program takes inputs of shape {found}, not {spec.written_shape}; leave --input out."
        )


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


def _check_weights(module: fx.GraphModule) -> None:
    """A clip would hide an infinite weight from every look at the answer."""
    damaged = [name for name, weight in module.named_parameters() if not torch.isfinite(weight).all()]
    if damaged:
        raise CaptureError(f"{damaged[0]} holds NaN or infinite values; the weights are damaged.")


def _check_same_answer(program: ExportedProgram, module: fx.GraphModule, spec: ImageSpec) -> None:
    """In-place calls on views would be lost by the rewriting above; this is where it and random numbers would show."""
    generator = torch.Generator().manual_seed(0)
    low, high = input_bounds(spec)
    sample = low + (high - low) * torch.rand(2, *spec.shape, generator=generator)
    given = split(sample.numpy(), [part.shape for part in spec.parts])
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
            raise CaptureError(
                "the network writes into parts of a tensor in place, or draws random numbers; write it without either."
            )
