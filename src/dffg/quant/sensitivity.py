"""What one layer at fewer bits harms, while all others stay in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from dffg.graph.ends import columns
from dffg.graph.nodes import nodes_by_name
from dffg.quant.affine import QParams, dequantize, fake_quantize
from dffg.quant.allocation import Sensitivities
from dffg.quant.divergence import divergence
from dffg.quant.parameters import LayerParameters

_BATCH = 4
Candidate = TypeVar("Candidate")
# By name and by width.
Candidates = Mapping[str, Mapping[int, Candidate]]


class FloatRun:
    """Every value of the float network on a batch of images, to ask what follows if one of them changes.

    Only what depends on the change is computed again. Memory: all activations of the batch.
    """

    def __init__(self, module: fx.GraphModule, images: Tensor) -> None:
        self._module = module
        self.parts = columns(module).values()
        interpreter = fx.Interpreter(module, garbage_collect_values=False)
        interpreter.run(images)
        self.values: dict[fx.Node, Any] = interpreter.env
        self.output: Tensor = self.values[module.graph.output_node()]

    def output_with(self, changed: fx.Node, value: Tensor) -> Tensor:
        """The network's output if this node had this value."""
        dependent = dependents(changed)
        kept = {node: result for node, result in self.values.items() if node not in dependent}
        result: Tensor = fx.Interpreter(self._module).run(initial_env={**kept, changed: value})
        return result

    def call(self, node: fx.Node, **arguments: Tensor) -> Tensor:
        """The result of a layer with another `input` or `weight`."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: self.values[used])
        x, weight, *rest = args
        result: Tensor = node.target(arguments.get("input", x), arguments.get("weight", weight), *rest, **kwargs)  # type: ignore
        return result


def dependents(changed: fx.Node) -> set[fx.Node]:
    """Every node that is computed from this one."""
    found: set[fx.Node] = set()
    waiting = list(changed.users)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


class Measure(Protocol):
    """A sensitivity of every image of a run, (batch,), in float64."""

    def of_weight(self, run: FloatRun, layer: fx.Node, weight: Tensor) -> Tensor:
        """If only this layer had this weight."""

    def of_input(self, run: FloatRun, tensor: fx.Node, readers: list[fx.Node], qparams: QParams) -> Tensor:
        """If only this tensor, which these layers read, were quantized."""


class Divergence:
    """KL(softmax(float output) || softmax(output)), over each flattened output, in nats.

    Source: ZeroQ (Cai et al., CVPR 2020), eq. 5. One pass through the rest of the network per candidate.
    """

    def of_weight(self, run: FloatRun, layer: fx.Node, weight: Tensor) -> Tensor:
        """From the layer to the answer."""
        return _apart(run, run.output_with(layer, run.call(layer, weight=weight)))

    def of_input(self, run: FloatRun, tensor: fx.Node, readers: list[fx.Node], qparams: QParams) -> Tensor:
        """From the tensor to the answer, through everything that reads it."""
        return _apart(run, run.output_with(tensor, fake_quantize(run.values[tensor], qparams)))


def _apart(run: FloatRun, output: Tensor) -> Tensor:
    return divergence(run.output.double(), output.double(), run.parts)


class Noise:
    """Power of a layer's own noise over the power of its result: 1 / SQNR, as a ratio and not in dB.

    One call of the layer per candidate and nothing behind it: it is much faster, and blind to what the network makes of
    the noise.
    """

    def of_weight(self, run: FloatRun, layer: fx.Node, weight: Tensor) -> Tensor:
        """In the layer's result, from its float input."""
        return relative_noise(run.values[layer], run.call(layer, weight=weight))

    def of_input(self, run: FloatRun, tensor: fx.Node, readers: list[fx.Node], qparams: QParams) -> Tensor:
        """Summed over the results of the layers that read the tensor, with their float weights."""
        # What lies between rearranges values or clips them at 0, so that quantizing behind it is the same.
        noisy = [run.call(layer, input=fake_quantize(run.values[layer.args[0]], qparams)) for layer in readers]  # type: ignore[index]
        noises = [relative_noise(run.values[layer], result) for layer, result in zip(readers, noisy)]
        return torch.stack(noises).sum(0)


MEASURES: dict[str, Measure] = {"kl": Divergence(), "sqnr": Noise()}


def relative_noise(reference: Tensor, result: Tensor) -> Tensor:
    """sum (reference - result)^2 / sum reference^2 of every example; (batch, ...) -> (batch,). 0 / 0 is 0."""
    noise = (reference - result).flatten(1).square().sum(1, dtype=torch.float64)
    return noise / reference.flatten(1).square().sum(1, dtype=torch.float64).clamp(min=1e-300)


def measure_weights(
    module: fx.GraphModule, images: Tensor, candidates: Candidates[LayerParameters], method: Measure
) -> Sensitivities:
    """Omega_i(k): what weight i at k bits harms, by layer and width, as a mean over images (count, ...)."""
    nodes = nodes_by_name(module)

    def harm(run: FloatRun, name: str, layer: LayerParameters) -> Tensor:
        return method.of_weight(run, nodes[name], dequantize(layer.levels, layer.qparams))

    return _mean_over_images(module, images, candidates, harm)


def measure_inputs(
    module: fx.GraphModule,
    images: Tensor,
    candidates: Candidates[QParams],
    readers: Mapping[str, list[fx.Node]],
    method: Measure,
) -> Sensitivities:
    """As `measure_weights`, for the inputs of layers. readers: the layers by the tensor whose range their input has."""
    nodes = nodes_by_name(module)

    def harm(run: FloatRun, name: str, qparams: QParams) -> Tensor:
        return method.of_input(run, nodes[name], readers[name], qparams)

    return _mean_over_images(module, images, candidates, harm)


def _mean_over_images(
    module: fx.GraphModule,
    images: Tensor,
    candidates: Candidates[Candidate],
    harm: Callable[[FloatRun, str, Candidate], Tensor],
) -> Sensitivities:
    sums = {name: dict.fromkeys(widths, 0.0) for name, widths in candidates.items()}
    with torch.no_grad():
        for batch in torch.split(images, _BATCH):
            run = FloatRun(module, batch)
            for name, widths in candidates.items():
                for bits, candidate in widths.items():
                    sums[name][bits] += float(harm(run, name, candidate).sum())
    return {name: {bits: total / len(images) for bits, total in widths.items()} for name, widths in sums.items()}
